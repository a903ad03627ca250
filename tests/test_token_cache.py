"""Cached tokens that enter the first prompted block change no number, and no later run computes them again."""

from __future__ import annotations

import logging

import pytest
import torch
from test_simulation import data, numbers, run, sweep  # noqa: F401 - data is a fixture

from fedbench.base import process_cache
from fedbench.data import DataError
from fedbench.plan.plugins import plugins
from fedbench.vit import token_cache
from fedbench.vit.backbone import Backbone
from fedbench.vit.token_cache import first_block

LATE = {"name": "pep_fedpt", "prompt_length": 0}  # prompts enter from the middle block on
TAPPED = LATE | {"query": "inject"}
IMAGES, DEPTH = 160, 6  # of the fixture `data`, of nano


@pytest.fixture
def computed(monkeypatch):
    """{block: number of images whose tokens entering it were computed}."""
    counts: dict[int, int] = {}
    before = Backbone.entering

    def counted(self, images, layer):
        counts[layer] = counts.get(layer, 0) + len(images)
        return before(self, images, layer)

    monkeypatch.setattr(Backbone, "entering", counted)
    process_cache.clear()
    yield counts
    process_cache.clear()


@pytest.mark.parametrize(
    "method", [pytest.param(LATE, marks=pytest.mark.slow), TAPPED], ids=["query final", "query inject"]
)
@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_no_number_changes(data, tmp_path, method, precision):  # noqa: F811
    plan = sweep(data, [method], precision=precision, local={"lr": 0.01, "batch_size": 8})
    places = {"cached": {}, "no room": {"token_cache_gb": 0.0}, "plain": {"shortcuts": False}}
    records = {
        name: numbers(run(plan.runs[0], plan, tmp_path / name, data=tmp_path / name, **machine))
        for name, machine in places.items()
    }
    assert [path.parent.name[-7:] for path in (tmp_path / "cached").rglob("tokens.npy")] == ["-block3"]
    assert not list((tmp_path / "no room").rglob("tokens.npy"))
    near = {"rel": 1e-9} if precision == "float64" else {"rel": 1e-4}
    for name in ("no room", "plain"):
        for cached, other in zip(records["cached"], records[name], strict=True):
            assert cached["train_loss"] == pytest.approx(other["train_loss"], **near)
            if precision == "float64":
                assert cached["mean_accuracy"] == other["mean_accuracy"]


def test_tokens_are_computed_once_for_all_runs(data, tmp_path, computed):  # noqa: F811
    plan = sweep(data, [LATE], {"seed": [0, 1]})
    run(plan.runs[0], plan, tmp_path, data=tmp_path)
    assert computed == {0: IMAGES, 3: IMAGES}  # the prompt-free features, and the tokens
    process_cache.clear()  # as another process
    run(plan.runs[1], plan, tmp_path, data=tmp_path)
    assert computed == {0: IMAGES, 3: IMAGES}


def test_augmented_images_do_not_use_the_cache(data, tmp_path, computed):  # noqa: F811
    plan = sweep(data, [LATE], local={"lr": 0.01, "batch_size": 8, "augment": "crop_flip"})
    run(plan.runs[0], plan, tmp_path, data=tmp_path)
    assert set(computed) == {0}
    assert not list(tmp_path.rglob("tokens.npy"))


def test_the_file_does_not_depend_on_the_number_of_threads(data, tmp_path, computed):  # noqa: F811
    plan, before = sweep(data, [LATE]), torch.get_num_threads()
    files = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            run(plan.runs[0], plan, tmp_path / str(threads), data=tmp_path / str(threads))
        finally:
            torch.set_num_threads(before)
        process_cache.clear()
        (path,) = (tmp_path / str(threads)).rglob("tokens.npy")
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_a_run_continues_without_a_cache_that_cannot_be_written(data, tmp_path, computed, monkeypatch, caplog):  # noqa: F811
    def full(*_):
        raise DataError("planted: no space left")

    monkeypatch.setattr(token_cache, "cached_arrays", full)
    plan = sweep(data, [LATE])
    with caplog.at_level(logging.WARNING, "fedbench"):
        assert run(plan.runs[0], plan, tmp_path, data=tmp_path).records()
    assert "tokens entering block 3 are not cached: planted" in caplog.text


@pytest.mark.parametrize(
    ("method", "block"),
    [
        (LATE, 3),
        (TAPPED, 3),
        (LATE | {"inject": 5}, 5),
        ("pep_fedpt", 0),
        ("fedvpt", 0),
        ("sgpt", 0),  # in each phase another last block
        ("lora", 0),  # weights of the backbone are the client's
        ("pfedpt", 0),  # and here the pixels
        ("head_only", 0),
    ],
    ids=str,
)
def test_the_first_block_that_depends_on_a_run(method, block):
    block_of_method = {"name": method} if isinstance(method, str) else method
    assert first_block(plugins().make("method", block_of_method), DEPTH) == block
