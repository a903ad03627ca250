"""From a sweep file to runs: how lists multiply, how runs are named, and how mistakes are reported."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench.plan.config import ConfigError, Sweep
from fedbench.plan.content import forget
from fedbench.plan.planning import check_sweep, planned_from_disk, read_sweep
from fedbench.plan.plugins import plugins

BASE: dict[str, Any] = {"dataset": {"name": "digits"}, "partition": {"name": "iid"}, "method": {"name": "fedvpt"}}


def planned(base: dict[str, Any] | None = None, settings: tuple[str, ...] = (), **content: Any) -> Sweep:
    return check_sweep({"base": {**BASE, **(base or {})}, **content}, plugins(), settings)


def key(base: dict[str, Any] | None = None, **content: Any) -> str:
    (run,) = planned(base, **content).runs
    return run.key


def npz(path: Path, value: int) -> dict[str, Any]:
    images = np.full((4, 8, 8, 3), value, np.uint8)
    np.savez(path, images=images, labels=np.arange(4) % 2, is_test=np.arange(4) < 2)
    return {"dataset": {"name": "npz", "path": str(path)}}


# -- expansion -------------------------------------------------------------------------------------------------
def test_lists_multiply_and_the_first_varies_slowest() -> None:
    runs = planned(grid={"method": ["head_only", "fedvpt"], "seed": [0, 1, 2]}).runs
    order = [(run.run.method["name"], run.run.seed) for run in runs]
    assert order == [(method, seed) for method in ("head_only", "fedvpt") for seed in (0, 1, 2)]


def test_dotted_keys_reach_into_blocks() -> None:
    runs = planned({"local": {"lr": 0.5, "momentum": 0.0}}, grid={"local.lr": [0.1, 0.2]}).runs
    assert [(run.run.local.lr, run.run.local.momentum) for run in runs] == [(0.1, 0.0), (0.2, 0.0)]


def test_equal_runs_are_one() -> None:
    assert len(planned(grid={"seed": [0, 0, 1]}).runs) == 2


def test_with_overlays_the_whole_run_for_one_value() -> None:
    fedvpt = {"name": "fedvpt", "with": {"local": {"lr": 0.5}, "rounds": 7}}
    head, vpt = planned({"local": {"epochs": 3}}, grid={"method": ["head_only", fedvpt], "rounds": [1]}).runs
    assert (head.run.local.lr, head.run.local.epochs, head.run.rounds) == (0.01, 3, 1)
    assert (vpt.run.local.lr, vpt.run.local.epochs, vpt.run.rounds) == (0.5, 3, 7)
    assert "with" not in vpt.run.method


def test_a_label_names_the_method_and_changes_no_numbers() -> None:
    plain, named = (planned({"method": {"name": "fedvpt", **more}}).runs[0] for more in ({}, {"label": "P-PT"}))
    assert (plain.label, named.label) == ("fedvpt", "P-PT")
    assert plain.key == named.key


def test_a_label_tells_fields_that_differ_from_the_default() -> None:
    (run,) = planned({"method": {"name": "fedvpt", "prompt_length": 3}}).runs
    assert run.label == "fedvpt(prompt_length=3)"


def test_settings_win_over_base_and_grid() -> None:
    made = planned(
        grid={"seed": [0, 1], "method": ["head_only", "fedvpt"]},
        settings=("seed=4", "local.lr=0.5", "cluster.cpus=3", "machine.clients=loop"),
    )
    assert len(made.runs) == 2
    assert {run.run.seed for run in made.runs} == {4}
    assert {run.run.local.lr for run in made.runs} == {0.5}
    assert (made.cluster.cpus, made.machine.clients) == (3, "loop")


def test_settings_reach_into_every_value_of_a_list_and_win_over_overlays() -> None:
    methods = ["fedvpt", {"name": "fedvpt_deep", "with": {"rounds": 7, "local.lr": 0.5}}]
    runs = planned(grid={"method": methods}, settings=("method.prompt_length=2", "rounds=3")).runs
    assert [(run.run.method["prompt_length"], run.run.rounds, run.run.local.lr) for run in runs] == [
        (2, 3, 0.01),
        (2, 3, 0.5),
    ]


# -- names -----------------------------------------------------------------------------------------------------
def test_the_folder_says_what_it_holds() -> None:
    (run,) = planned({"seed": 2}).runs
    assert re.fullmatch(r"fedvpt-digits-iid-s2-[0-9a-f]{8}", run.name)
    assert run.name.endswith(run.key)


def test_seed_0_is_a_seed_like_any_other() -> None:
    runs = planned(grid={"seed": [0, 1]}).runs
    assert [run.run.seed for run in runs] == [0, 1]
    assert runs[0].key != runs[1].key
    assert [runs[0].run.stream(name) for name in ("partition", "cohort", "init", "batches")] == [0] * 4
    assert planned({"seed": 3, "seeds": {"init": 0}}).runs[0].run.stream("init") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 99},
        {"seed": 1},
        {"seeds": {"init": 0}},
        {"local": {"lr": 0.02}},
        {"clients": {"number": 99}},
        {"method": {"name": "fedvpt", "prompt_length": 3}},
        {"partition": {"name": "dirichlet"}},
        {"precision": "float64"},
    ],
    ids=str,
)
def test_what_changes_numbers_changes_the_key(change: dict[str, Any]) -> None:
    assert key(change) != key()


@pytest.mark.parametrize(
    "content",
    [
        {"name": "another"},
        {"cluster": {"cpus": 7, "gpus": 1, "partition": "gpu", "slurm": {"exclude": "n1"}}},
        {
            "machine": {
                "device": "cpu",
                "clients": "loop",
                "chunk_images": 7,
                "data": "/elsewhere",
                "checkpoint_seconds": 1,
            }
        },
    ],
    ids=["name", "cluster", "machine"],
)
def test_where_and_how_a_run_is_done_does_not(content: dict[str, Any]) -> None:
    assert key(**content) == key()


def test_a_default_given_or_not_is_the_same_run() -> None:
    fields = planned().runs[0].run.model_dump()
    method = {**fields["method"]}
    assert key({"method": method, "rounds": 100, "local": {"lr": 0.01}, "aggregation": "fedavg", "seed": 0}) == key()
    assert key({"method": "fedvpt", "local": {}, "clients": None}) == key()


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    first = key(npz(tmp_path / "a.npz", 1))
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "moved" / "b.npz")
    forget()
    assert key({"dataset": {"name": "npz", "path": str(tmp_path / "moved" / "b.npz")}}) == first
    assert key(npz(tmp_path / "c.npz", 2)) != first


def test_a_file_changed_in_place_is_another_run(tmp_path: Path) -> None:
    first = key(npz(tmp_path / "a.npz", 1))
    assert key(npz(tmp_path / "a.npz", 2)) != first


def test_run_yaml_says_enough_to_make_the_run_again(tmp_path: Path) -> None:
    made = planned(
        {**npz(tmp_path / "a.npz", 1), "local": {"clip": 1.0}}, machine={"device": "cpu"}, cluster={"cpus": 2}
    )
    (run,) = made.runs
    again, machine, _ = planned_from_disk(made.on_disk(run))
    assert (again, machine) == (run, made.machine)


# -- mistakes --------------------------------------------------------------------------------------------------
def mistakes(content: dict[str, Any], settings: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as error:
        check_sweep(content, plugins(), settings)
    return str(error.value)


def test_all_mistakes_are_reported_at_once_with_the_nearest_names() -> None:
    said = mistakes(
        {
            "base": {**BASE, "roundz": 3, "local": {"learning_rate": 1}},
            "grid": {"seed": 3},
            "cluster": {"cpu": 1},
            "machine": {"device": "cpu", "chunk_images": -1},
            "grids": {},
        },
        ("bogus", "local_lr=3"),
    )
    for part in (
        "unknown name 'roundz'; did you mean 'rounds'?",
        "unknown name 'cpu'; did you mean 'cpus'?",
        "unknown name 'grids'; did you mean 'grid'?",
        "machine.chunk_images: Input should be greater than or equal to 0, found -1",
        "grid.seed: expected a list with at least one value, found 3",
        "--set bogus: expected key=value",
        "--set: unknown name 'local_lr'; did you mean 'local'?",
        "legal: timeout_min, gpus, cpus",
    ):
        assert part in said
    assert "local: unknown name 'learning_rate'" in said
    assert "8 mistakes" in said


def test_a_mistake_in_a_block_is_reported_once_for_all_runs_that_share_it() -> None:
    said = mistakes(
        {
            "base": {**BASE, "method": {"name": "fedvtp"}, "dataset": {"name": "digits", "sice": 3}},
            "grid": {"seed": [0, 1, 2], "local": [{"lr": -1}, {"optimiser": "sgd"}]},
        }
    )
    assert "method: unknown name 'fedvtp'; did you mean 'fedvpt'?" in said
    assert "dataset digits: unknown name 'sice'" in said
    assert "local.lr: Input should be greater than 0, found -1" in said
    assert "local: unknown name 'optimiser'; did you mean 'optimizer'?" in said
    assert "4 mistakes" in said


@pytest.mark.parametrize(
    ("base", "part"),
    [
        ({"method": 3}, "method: expected {name: ...} with one of"),
        ({"method": None}, "method: expected {name: ...} with one of"),
        ({"local": 3}, "local: expected a mapping, found 3"),
        ({"seed": -1}, "run.seed: Input should be greater than or equal to 0"),
        ({"rounds": "many"}, "run.rounds: Input should be a valid integer"),
        ({"rounds": 1.5}, "run.rounds: Input should be a valid integer"),
        ({"method": {"name": "fedvpt", "prompt_length": "long"}}, "method fedvpt.prompt_length"),
        ({"clients": {"number": 10, "per_round": 10, "held_out": 0.2}}, "per_round is 10, but only 8 of 10 clients"),
        ({"clients": {"number": 4, "per_round": 5}}, "per_round is 5, but only 4 of 4"),
        ({"dataset": {"name": "npz", "path": "/nowhere.npz"}}, "/nowhere.npz: No such file"),
        ({"backbone": {"weights": "/nowhere.safetensors"}}, "/nowhere.safetensors: No such file"),
        ({"backbone": "nano"}, "backbone: expected a mapping"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(base: dict[str, Any], part: str) -> None:
    assert part in mistakes({"base": {**BASE, **base}})


@pytest.mark.parametrize(
    "settings", ["rounds.x=3", "rounds=[", "method.prompt_lenght=2", "seed=", "cluster=3", "seed={a: 1, a: 2}"]
)
def test_odd_settings_are_mistakes_not_tracebacks(settings: str) -> None:
    base = {**BASE, "method": "fedvpt", "rounds": 3}
    assert mistakes({"base": base}, (settings,))


@pytest.mark.parametrize(
    ("grid", "part"),
    [
        ({"local.lr.x": [1]}, "local"),
        ({"rounds.x": [1]}, "rounds"),
        ({"method": [{"name": "fedvpt", "with": 3}]}, "with"),
        ({"method": [{"name": "fedvpt", "with": {"roundz": 3}}]}, "roundz"),
        ({"seed": []}, "grid.seed"),
    ],
    ids=str,
)
def test_odd_grids_are_mistakes_not_tracebacks(grid: dict[str, Any], part: str) -> None:
    assert part in mistakes({"base": {**BASE, "rounds": 3}, "grid": grid})


def test_a_missing_block_is_asked_for() -> None:
    said = mistakes({"base": {"dataset": "digits"}})
    assert "method: missing: every run needs one, under base or grid" in said
    assert "partition: missing" in said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("base: {rounds: 1, rounds: 2}", "the key 'rounds' is given twice"),
        ("base:\n  rounds: 1\nbase:\n  rounds: 2", "the key 'base' is given twice"),
        ("base: [", "not YAML"),
        ("- 1", "expected a mapping with the keys name, base, grid"),
        ("", "expected a mapping"),
        ("base: {? [1, 2] : 3}", "unhashable key"),
        ("base: {1: 2}", "unknown name '1'; legal: "),
        ("base: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(part)):
        read_sweep(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read .*fedbench.s own sweeps are clients, .*roster"):
        read_sweep(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(tmp_path)


def test_a_plugin_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        read_sweep(tmp_path / "sweep.yaml", [tmp_path / "nowhere"])


# -- size ------------------------------------------------------------------------------------------------------
def test_ten_thousand_runs_expand_in_five_seconds() -> None:
    grid = {
        "method": ["head_only", *({"name": "fedvpt", "prompt_length": n} for n in range(1, 10))],
        "partition": [{"name": "dirichlet", "alpha": 0.1 * n} for n in range(1, 11)],
        "local.lr": [0.001 * n for n in range(1, 11)],
        "seed": list(range(10)),
    }
    start = time.process_time()
    runs = planned(grid=grid).runs
    assert len({run.name for run in runs}) == 10_000
    assert time.process_time() - start < 5
