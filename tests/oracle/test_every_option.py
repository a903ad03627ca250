"""Every option changes what it must and nothing else. Options are read from the code, so a new option needs an expectation."""

from __future__ import annotations

import ast
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import laws
from oracle.expectations import AGGREGATIONS, METHODS, OF_AGGREGATIONS, RUN, SMALL, Change, common
from oracle.fingerprint import base, changed, fingerprint, text_base, write_world

from fedbench import data
from fedbench.base.records import RunFolder
from fedbench.data import DataError, Samples
from fedbench.plan.config import RunConfig
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.simulation import run_rounds

TESTS = Path(__file__).resolve().parents[1]
CLASSES = plugins().classes
PLUGIN_OPTIONS = [
    (kind, name, option.name)
    for kind in ("method", "aggregation")
    for name, cls in CLASSES[kind].items()
    for option in dataclasses.fields(cls)
]
RUN_OPTIONS = [
    (key, *inner)
    for key, info in RunConfig.model_fields.items()
    for inner in (
        [(name,) for name in info.annotation.model_fields] if hasattr(info.annotation, "model_fields") else [()]
    )
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_world(folder)
    return folder


@cache
def cached_fingerprint(folder: Path, words: str) -> dict[str, Any]:
    """The fingerprint of a run, once."""
    return fingerprint(ast.literal_eval(words), folder)


def aspects(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return changed(cached_fingerprint(folder, repr(before)), fingerprint(after, folder))


def expectations(kind: str, name: str, option: str) -> list[Change]:
    table = METHODS if kind == "method" else AGGREGATIONS
    of_all = common(name) if kind == "method" else OF_AGGREGATIONS
    changes = table.get((name, option)) or of_all.get(option)
    assert changes, f"{kind} {name}: say in oracle/expectations.py what {option} changes"
    return changes


def quick_or_slow(option: tuple[str, str, str]) -> Any:
    """Options that a fast test has under the name of another method, with the same class, are slow."""
    return pytest.param(*option, marks=pytest.mark.slow) if option[1] == "pep_fedpt_text" else option


@pytest.mark.parametrize(
    ("kind", "name", "option"), [*map(quick_or_slow, PLUGIN_OPTIONS)], ids=map("-".join, PLUGIN_OPTIONS)
)
def test_a_plug_ins_option_changes_what_it_must_and_nothing_else(
    world: Path, kind: str, name: str, option: str
) -> None:
    for change in expectations(kind, name, option):
        block = {"name": name} | SMALL.get(name, {}) | change.block
        is_text = kind == "method" and CLASSES[kind][name].reads_text
        before = (text_base if is_text else base)(world) | change.whole | {kind: block}
        after = before | {kind: block | {option: change.value}}
        if change.refused:
            with pytest.raises(ValueError, match=change.refused):
                fingerprint(after, world)
        else:
            assert aspects(world, before, after) == change.aspects, change


FACTORS = [(name, option) for _, name, option in PLUGIN_OPTIONS if option.endswith("_lr_scale")]


@pytest.mark.parametrize(("name", "option"), FACTORS, ids=map("-".join, FACTORS))
def test_a_factor_is_the_rate_of_some_values_and_of_no_others(world: Path, name: str, option: str) -> None:
    block = {"name": name} | SMALL.get(name, {})
    content = (text_base if CLASSES["method"][name].reads_text else base)(world)
    before = cached_fingerprint(world, repr(content | {"method": block}))["rates"]
    after = fingerprint(content | {"method": block | {option: 2.75}}, world)["rates"]
    assert {scale for key, scale in after.items() if before.get(key) != scale} == {2.75}
    assert not any(key.startswith("head") for key in after)


@pytest.mark.parametrize("option", RUN_OPTIONS, ids=map(".".join, RUN_OPTIONS))
def test_a_key_of_the_run_changes_what_it_must_and_nothing_else(world: Path, option: tuple[str, ...]) -> None:
    assert option in RUN, f"say in oracle/expectations.py what {'.'.join(option)} changes"
    for change in RUN[option] or ():
        before = base(world) | change.whole
        value = change.value
        if isinstance(value, str) and value.endswith((".safetensors", ".csv")):
            value = str(world / value)
        if isinstance(value, dict) and "path" in value:
            value = value | {"path": str(world / value["path"])}
        if len(option) == 1:
            after = before | {option[0]: value}
        else:
            block = before.get(option[0], {})
            if option[0] == "local":
                before = before | {"local": block | change.block}
            after = before | {option[0]: block | change.block | {option[1]: value}}
        if change.refused:
            with pytest.raises(ValueError, match=change.refused):
                fingerprint(after, world)
            continue
        assert aspects(world, before, after) == change.aspects, change


def test_every_expectation_is_of_an_option() -> None:
    known = {(name, option) for _, name, option in PLUGIN_OPTIONS}
    assert METHODS.keys() | AGGREGATIONS.keys() <= known
    assert RUN.keys() == set(RUN_OPTIONS)


def test_precisions_are_as_fine_as_they_say(world: Path) -> None:
    exact = cached_fingerprint(world, repr(base(world)))["scores"]
    error = {p: (fingerprint(base(world) | {"precision": p}, world)["scores"] - exact).abs().max() for p in KINDS}
    assert 0 < error["float32"] < 1e-4 * exact.abs().max()
    assert error["tf32"] == error["float32"]  # on a CPU
    assert 1e-4 * exact.abs().max() < error["bfloat16"] < 0.1 * exact.abs().max()


KINDS = ("float32", "tf32", "bfloat16")


def test_evaluations_come_when_due_and_without_test_data_say_nothing_of_it(world: Path, tmp_path: Path) -> None:
    for every, test_data, rounds in ((2, True, [2, 3]), (3, False, [3])):
        content = base(world) | {"method": {"name": "head_only"}, "evaluate_every": every, "test_data": test_data}
        sweep = check_sweep({"base": content, "machine": {"data": str(world), "device": "cpu"}}, plugins())
        folder = RunFolder(tmp_path / sweep.runs[0].name)
        folder.plan(sweep.on_disk(sweep.runs[0]))
        run_rounds(sweep.runs[0], sweep.machine, sweep.plugins, folder)
        records = folder.records()
        assert [record["round"] for record in records] == rounds
        assert {"mean_accuracy" in record for record in records} == {test_data}
        assert all(record["val_mean_accuracy"] is not None for record in records)


# -- partitioners and datasets -------------------------------------------------------------------------------------------------
N, C, K = 960, 8, 6
LABELS = np.arange(N) % C
MANY = Samples(
    np.zeros((N, 1, 1, 3), dtype=np.uint8),
    LABELS,
    np.arange(N) // C % 3 == 0,
    domain=np.arange(N) // 2 % 3,
    user=np.arange(N) // 24 % 12,  # four users with 64 training samples, eight with 48
)
NEEDED = {
    "pathological": {"classes_per_client": 3},
    "imbalanced": {"classes_per_client": 3},
    "natural": {"users": "merge"},
}
# Shown by tests of their own, against numbers made by hand.
ELSEWHERE = {
    ("partition", "file", "path"): "test_splits.py::test_a_file_of_ones_own",
    (
        "partition",
        "dirichlet_client",
        "order",
    ): "test_partitioners.py::test_clients_in_turn_are_less_alike_than_at_once",
    ("partition", "natural", "users"): "test_splits.py::test_natural_merge_deals_users_evenly",
    ("partition", "quantity", "sigma"): "test_splits.py::test_quantity_sizes_are_log_normal",
    ("partition", "shards", "shards_per_client"): "test_splits.py::test_shards_may_straddle_classes",
    ("dataset", "npz", "path"): "test_npz.py::test_npz_gives_back_what_was_saved",
    ("dataset", "cifar100", "coarse"): "test_cifar.py::test_cifar100_reads_the_official_layout",
    (
        "dataset",
        "glyphs",
        "render_seed",
    ): "test_glyphs.py::test_drawing_twice_gives_the_same_bits_and_another_seed_others",
    ("dataset", "imagefolder", "path"): "test_imagefolder.py::test_imagefolder_of_classes",
    ("dataset", "imagefolder", "image_size"): "test_imagefolder.py::test_imagefolder_sees_changed_files_and_options",
    ("dataset", "imagefolder", "test_share"): "test_imagefolder.py::test_imagefolder_of_domains",
    ("dataset", "imagefolder", "skip"): "test_imagefolder.py::test_prepare_lists_the_images_that_are_left_out",
    ("dataset", "inaturalist", "clients"): "test_official.py::test_inaturalist_cells_share_the_pixels",
    ("dataset", "pacs", "parts"): "test_official.py::test_pacs_without_lists",
    ("dataset", "pacs", "test_share"): "test_official.py::test_pacs_without_lists",
}
OFFICIAL = {  # options that all official datasets take from one base
    "image_size": "test_official.py::test_tiny_imagenet",
    "skip": "test_official.py::test_a_truncated_image_is_left_out_or_refused",
}
SPLIT_OPTIONS = [
    (kind, name, option.name)
    for kind in ("partition", "dataset")
    for name, cls in CLASSES[kind].items()
    for option in dataclasses.fields(cls)
]


def dealt(name: str, seed: int = 0, **options: Any) -> data.Split:
    return data.split(MANY, CLASSES["partition"][name](**NEEDED.get(name, {}) | options), K, seed=seed)


def unevenness(split: data.Split) -> float:
    """How far the clients' shares of a class are from equal."""
    counts = split.class_counts(LABELS, C)
    return float((counts / counts.sum(0)).std())


def partition_option(name: str, option: str) -> bool:
    """Check that a partitioner's option has its documented effect; False if this function does not know the option."""
    if (name, option) == ("natural", "min_train"):
        made = data.split(MANY, CLASSES["partition"][name](min_train=50), 4)
        assert [np.unique(MANY.user[part]).tolist() for part in made.train] == [[0], [1], [2], [3]]
        with pytest.raises(DataError, match="a client needs 99 training samples"):
            dealt(name, min_train=99)
    elif (name, option) == ("natural", "redraws"):  # whether a user is large enough is no matter of chance
        assert dealt(name, redraws=9).hash == dealt(name).hash
    elif option == "min_train":
        with pytest.raises(DataError, match=r"at least 9999 and 1 are needed"):
            dealt(name, min_train=9999)
        assert dealt(name, min_train=20, redraws=1000).train.sizes.min() >= 20
    elif option == "redraws":
        for draws in (1, 2):
            with pytest.raises(DataError, match=f"in the best of {draws} draws"):
                dealt(name, min_train=9999, redraws=draws)
    elif option == "test":
        official, own_test, merged = (
            MANY.is_test[dealt(name, test=kind).test.indices] for kind in ("official", "own", "merged")
        )
        assert (official.all(), own_test.any(), merged.all(), merged.any()) == (True, False, False, True)
    elif option == "test_share":
        for share in (0.25, 0.5):
            split = dealt(name, test="own", test_share=share)
            whole = split.train.sizes + split.test.sizes
            assert (split.test.sizes == np.clip(np.rint(share * whole), 1, whole - 1)).all()
    elif option == "alpha":
        more = {"owned": 0.3} if name == "imbalanced" else {}
        values = [
            float(np.mean([unevenness(dealt(name, s, alpha=a, **more)) for s in range(4)])) for a in (0.2, 1000.0)
        ]
        assert values[0] > 1.2 * values[1], values
    elif option == "classes_per_client":
        for count in (2, 4):
            held = dealt(name, classes_per_client=count).class_counts(LABELS, C) > 20
            assert held.sum(1).mean() == pytest.approx(count, abs=1.0 if name == "imbalanced" else 0)
    elif option == "owned":
        shares = [np.sort(dealt(name, owned=o).class_counts(LABELS, C), axis=0)[-3:].sum() / 640 for o in (0.99, 0.6)]
        assert shares[0] > 0.95 > 0.9 > shares[1]
    elif option == "balanced":
        for balanced in (True, False):
            made = dealt(name, alpha=0.2, balanced=balanced, min_train=1)
            owner = laws.dirichlet_owner(LABELS, MANY.is_test, K, 0.2, laws.stream(0, "partition", 0), balanced)
            for k in range(K):
                assert (made.train[k] == np.flatnonzero((owner == k) & ~MANY.is_test)).all()
    else:
        return False
    return True


def dataset_option(name: str, option: str) -> bool:
    """As `partition_option`, for a dataset."""
    if (name, option) == ("digits", "test_every"):
        for every in (3, 7):
            made = CLASSES["dataset"]["digits"](test_every=every).load(TESTS)
            assert made.is_test.mean() == pytest.approx(1 / every, abs=0.01)
        return True
    if name == "glyphs" and option in ("train_per_class", "test_per_class"):
        for count in (1, 2):
            extent = CLASSES["dataset"][name](**{option: count}).extent(TESTS)
            # 100 characters in 6 styles
            assert (extent.train if option == "train_per_class" else extent.test) == 600 * count
        return True
    return False


@pytest.mark.parametrize(("kind", "name", "option"), SPLIT_OPTIONS, ids=map("-".join, SPLIT_OPTIONS))
def test_an_option_of_data_means_what_it_says(kind: str, name: str, option: str) -> None:
    where = ELSEWHERE.get((kind, name, option)) or (OFFICIAL.get(option) if kind == "dataset" else None)
    if where:
        file, _, test = where.partition("::")
        body = next(
            (ast.unparse(node) for node in ast.walk(ast.parse((TESTS / file).read_text()))
             if isinstance(node, ast.FunctionDef) and node.name == test), ""
        )  # fmt: skip
        assert option in body or option in (TESTS / file).read_text().split("def ")[0], (
            f"{where} does not name {option}"
        )
        assert body, f"{where}: no such test"
    elif kind == "partition":
        assert partition_option(name, option), f"partition {name}: show what {option} does"
    else:
        assert dataset_option(name, option), f"dataset {name}: show what {option} does"
