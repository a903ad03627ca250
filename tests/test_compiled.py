"""torch.compile: the same numbers, and nothing is compiled after the first round, whatever sizes the passes have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_simulation import data, numbers, run, sweep  # noqa: F401 - data is a fixture
from torch._dynamo.testing import CompileCounterWithBackend

from fedbench.base import process_cache
from fedbench.base.records import RunFolder
from fedbench.bench import command
from fedbench.run.simulation import run_rounds
from fedbench.vit import compiled
from fedbench.vit.backbone import Backbone

pytestmark = [
    pytest.mark.slow,  # tracing and compiling take their time
    pytest.mark.filterwarnings("ignore"),  # what torch's compiler warns itself of
]
# Uneven clients, and so passes of many sizes; steps so small that rounding does not grow.
RECIPE: dict[str, Any] = {
    "precision": "float64",
    "partition": {"name": "dirichlet", "alpha": 0.5, "min_train": 3},
    "evaluate_every": 1,
    "local": {"batch_size": 4, "lr": 0.002},
}


@pytest.fixture(autouse=True)
def from_nothing() -> Any:
    """No form and no backbone of another test is left."""
    process_cache.clear()
    torch._dynamo.reset()
    yield
    process_cache.clear()
    torch._dynamo.reset()


def same(one: RunFolder, other: RunFolder) -> None:
    """The same numbers up to rounding."""
    for a, b in zip(numbers(one), numbers(other), strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value == (pytest.approx(b[key], rel=1e-9) if isinstance(value, float) else b[key]), key


@pytest.mark.parametrize("method", ["fedvpt", "fedvpt_deep", "pep_fedpt"])
def test_nothing_is_compiled_after_the_first_round(data, tmp_path, monkeypatch, method):  # noqa: F811
    counter = CompileCounterWithBackend("aot_eager")  # all of it but the C++ compiler
    monkeypatch.setattr(compiled, "BACKEND", counter)
    sizes: set[int] = set()
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x, *a, **b: sizes.add(len(x)) or forward(self, x, *a, **b))
    plan = sweep(data, [method], **RECIPE)
    (planned,) = plan.runs
    folder = RunFolder(tmp_path / "compiled" / planned.name)
    folder.plan(plan.on_disk(planned))
    counts: list[int] = []  # after each round and its evaluation
    machine = plan.machine.model_copy(update={"compile": True})
    run_rounds(planned, machine, plan.plugins, folder, lambda: counts.append(counter.frame_count) or False)
    assert len(sizes) > 2  # else nothing is shown
    assert counts == [counts[0]] * 4
    assert 0 < counts[0] < 9  # the blocks share them
    same(folder, run(planned, plan, tmp_path / "plain"))


def test_clients_with_backbone_weights_of_their_own_are_not_compiled(data, tmp_path, monkeypatch):  # noqa: F811
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    plan = sweep(data, ["lora"], **RECIPE)
    run(plan.runs[0], plan, tmp_path, compile=True)
    assert counter.frame_count == 0


def test_cached_features_are_the_same_with_and_without(data, tmp_path, monkeypatch):  # noqa: F811
    """Other runs read them, so they are not compiled, whatever was done before in this process."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    plan = sweep(data, ["fedvpt", "pep_fedpt"], **RECIPE)
    cached = []
    for given in (True, False):
        own = {"data": tmp_path / f"data-{given}", "compile": given}
        for planned in plan.runs:
            run(planned, plan, tmp_path / str(given), **own)
        (path,) = (own["data"] / "features").glob("*/features.npy")
        cached.append(path.read_bytes())
        process_cache.clear()
    assert cached[0] == cached[1]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_with_the_backend_that_users_have(data, tmp_path):  # noqa: F811
    plan = sweep(data, ["pep_fedpt"], **RECIPE)
    same(*(run(plan.runs[0], plan, tmp_path / str(given), compile=given) for given in (True, False)))


def test_the_benchmark_measures_it_beside_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    options = ["--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1", "--compile", "--json"]
    assert command.main([*options, str(tmp_path / "found.json")]) == 0
    (case,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert case["baselines"]["compiled"]["training"]["images_per_second"] > 0
    assert case["baselines"]["compiled"]["evaluation"]["times_bare_loop"] > 0


def test_a_machine_without_a_compiler_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("nowhere",))
    assert command.main(["--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1", "--compile"]) == 2
    said = capsys.readouterr().err
    assert "leave machine.compile out" in said
    assert "No working C++ compiler found" in said
    assert said.count("\n") == 1
