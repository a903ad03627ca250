"""`zip:` and `exclude:` of a sweep file, against lists of runs written by hand."""

import re
from typing import Any

import pytest

from fedbench.plan.config import ConfigError, Sweep
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins

BASE: dict[str, Any] = {
    "dataset": "digits",
    "partition": "iid",
    "method": "fedvpt",
    "clients": {"number": 10, "per_round": 5},
}


def planned(*settings: str, base: dict[str, Any] | None = None, **content: Any) -> Sweep:
    return check_sweep({"base": {**BASE, **(base or {})}, **content}, plugins(), settings)


def rates(sweep: Sweep) -> list[tuple[str, int, float]]:
    return [(run.run.method["name"], run.run.seed, run.run.local.lr) for run in sweep.runs]


def mistakes(*settings: str, **content: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        planned(*settings, **content)
    return re.findall(r"  - (.*)", str(error.value))


# -- zip -------------------------------------------------------------------------------------------------------
def test_zipped_lists_advance_together_and_multiply_with_the_grid():
    zipped = [{"local.lr": [0.1, 0.2], "local.epochs": [1, 2]}, {"clients.per_round": [3, 5], "rounds": [7, 9]}]
    runs = planned(grid={"seed": [0, 1]}, zip=zipped).runs
    assert [
        (r.run.seed, r.run.local.lr, r.run.local.epochs, r.run.clients.per_round, r.run.rounds, r.run.clients.number)
        for r in runs
    ] == [
        (0, 0.1, 1, 3, 7, 10),
        (0, 0.1, 1, 5, 9, 10),
        (0, 0.2, 2, 3, 7, 10),
        (0, 0.2, 2, 5, 9, 10),
        (1, 0.1, 1, 3, 7, 10),
        (1, 0.1, 1, 5, 9, 10),
        (1, 0.2, 2, 3, 7, 10),
        (1, 0.2, 2, 5, 9, 10),
    ]


def test_zip_works_without_a_grid_and_its_values_may_have_an_overlay():
    methods = ["head_only", {"name": "fedvpt", "with": {"local.lr": 0.5}}]
    assert rates(planned(zip=[{"method": methods, "seed": [3, 4]}])) == [("head_only", 3, 0.01), ("fedvpt", 4, 0.5)]


def test_a_setting_replaces_the_list_of_its_key_in_zip():
    zipped = [{"seed": [0, 1, 2], "local.lr": [0.1, 0.2, 0.3]}]
    assert rates(planned("seed=5", zip=zipped)) == [("fedvpt", 5, 0.1), ("fedvpt", 5, 0.2), ("fedvpt", 5, 0.3)]
    assert rates(planned("zip=[]", zip=zipped)) == [("fedvpt", 0, 0.01)]


def test_mistakes_in_zip_are_reported_together():
    assert mistakes(
        grid={"seed": [0, 1]},
        zip=[
            {"seed": [0, 1], "rounds": [1, 2]},
            {"local.lr": [0.1, 0.2], "local.epochs": [1, 2, 3]},
            {"rounds": [3], "evaluate_every": 4},
            {"round": [1, 2]},
            7,
        ],
    ) == [
        "zip, block 1: seed is also in grid; a key may vary in one place only",
        "zip, block 2: lists that advance together must be equally long: local.lr has 2, local.epochs has 3",
        "zip, block 3: rounds is also in zip, block 1; a key may vary in one place only",
        "zip, block 3, evaluate_every: expected a list with at least one value, found 4",
        "zip, block 4: unknown name 'round'; did you mean 'rounds'? legal: backbone, dataset, partition, method, "
        "aggregation, seed, seeds, rounds, clients, local, evaluate_every, precision, metrics, test_data",
        "zip, block 5: expected a mapping of equally long lists, found 7",
    ]
    assert mistakes(zip={"seed": [0]}) == [
        "zip: expected a list of mappings of equally long lists, found {'seed': [0]}"
    ]


def test_zipped_lists_count_once_towards_the_most_runs():
    zipped = [{"seed": list(range(1000)), "rounds": list(range(1, 1001))}]
    assert mistakes(grid={"local.epochs": list(range(1, 102))}, zip=zipped) == [
        "grid: 101 x 1,000 = 101,000 runs; a sweep has at most 100,000"
    ]


# -- exclude ---------------------------------------------------------------------------------------------------
def test_a_run_is_left_out_if_it_has_all_values_of_an_entry():
    grid = {"method": ["head_only", "fedvpt"], "seed": [0, 1], "local.lr": [0.1, 0.2]}
    exclude = [{"method": "head_only", "local.lr": 0.2}, {"seed": 1, "local": {"lr": 0.1}}]
    assert rates(planned(grid=grid, exclude=exclude)) == [
        ("head_only", 0, 0.1),
        ("fedvpt", 0, 0.1),
        ("fedvpt", 0, 0.2),
        ("fedvpt", 1, 0.2),
    ]


METHODS = [
    "head_only",
    "fedvpt",
    {"name": "fedvpt", "prompt_length": 3},
    {"name": "fedvpt", "prompt": "local", "label": "P-PT"},
]


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ({"method": "fedvpt"}, [0]),
        ({"method": {"name": "fedvpt", "prompt": "local"}}, [0, 1, 2]),
        ({"method": {"name": "fedvpt", "prompt": "shared"}}, [0, 3]),  # the default of those that do not write it
        ({"method": {"prompt_length": 8}}, [0, 2]),
        ({"method.prompt_length": 3}, [0, 1, 3]),
        ({"method": {"label": "P-PT"}}, [0, 1, 2]),
        ({"method": "head_only", "aggregation": "fedavg", "clients": {"per_round": 5}, "rounds": 100}, [1, 2, 3]),
    ],
    ids=str,
)
def test_plug_ins_match_by_the_fields_of_the_entry_and_by_defaults(entry, kept):
    every = [run.key for run in planned(grid={"method": METHODS}).runs]
    assert len(every) == 4
    assert [run.key for run in planned(grid={"method": METHODS}, exclude=[entry]).runs] == [every[i] for i in kept]


def test_exclude_sees_zip_overlays_and_settings():
    zipped = [{"seed": [0, 1, 2], "local.lr": [0.1, 0.2, 0.3]}]
    grid = {"method": ["head_only", {"name": "fedvpt", "with": {"local.lr": 0.3}}]}
    assert rates(planned(grid=grid, zip=zipped, exclude=[{"local.lr": 0.3}])) == [
        ("head_only", 0, 0.1),
        ("head_only", 1, 0.2),
    ]


def test_exclude_can_leave_out_combinations_that_are_not_legal():
    grid = {"clients.number": [4, 20], "clients.per_round": [4, 10]}
    assert mistakes(grid=grid) == [
        "clients: per_round is 10, but only 4 of 4 clients take part in training (held_out: 0)"
    ]
    runs = planned(grid=grid, exclude=[{"clients": {"number": 4, "per_round": 10}}]).runs
    assert [(run.run.clients.number, run.run.clients.per_round) for run in runs] == [(4, 4), (20, 4), (20, 10)]


def test_mistakes_in_exclude_are_reported_together():
    messages = mistakes(
        grid={"seed": [0, 1]},
        exclude=[
            {"seed": 2},
            {"seed": True},
            {"sed": 1},
            {"method": "fedvtp"},
            {"method": {"name": "fedvpt", "promt": "local"}},
            {"local": {"rate": 1}},
            {"local": 3},
            {},
            "seed",
            {"local": {"lr": {"log": [0, 1]}}},
        ],
    )
    assert [text.partition("; legal")[0].partition(" legal")[0] for text in messages] == [
        "exclude, entry 3: unknown name 'sed'; did you mean 'seed'?",
        "exclude, entry 4, method: unknown name 'fedvtp'; did you mean 'fedvpt'?",
        "exclude, entry 5, method: unknown name 'promt'; did you mean 'prompt'?",
        "exclude, entry 6, local: unknown name 'rate'",
        "exclude, entry 7, local: expected a mapping with at least one key, found 3",
        "exclude, entry 8: expected a mapping with at least one key, found {}",
        "exclude, entry 9: expected a mapping with at least one key, found 'seed'",
        "exclude, entry 1: {'seed': 2} matches no run; a run matches if it has all of these values",
        "exclude, entry 2: {'seed': True} matches no run; a run matches if it has all of these values",
        "exclude, entry 10: {'local': {'lr': {'log': [0, 1]}}} matches no run; a run matches if it has all of these values",
    ]
    assert mistakes(exclude={"seed": 0}) == [
        "exclude: expected a list of mappings such as {seed: 0}, found {'seed': 0}"
    ]


def test_a_sweep_without_runs_is_a_mistake():
    assert mistakes(grid={"seed": [0, 1]}, exclude=[{"method": "fedvpt"}]) == ["exclude: leaves out every run"]


def test_an_entry_may_match_nothing_once_the_command_line_changed_its_key():
    grid, exclude = {"seed": [0, 1], "local.lr": [0.1, 0.2]}, [{"seed": 1, "local.lr": 0.2}]
    assert rates(planned("grid.seed=[0]", grid=grid, exclude=exclude)) == [("fedvpt", 0, 0.1), ("fedvpt", 0, 0.2)]
    assert rates(planned("seed=1", grid=grid, exclude=exclude)) == [("fedvpt", 1, 0.1)]
    assert len(planned("exclude=[]", grid=grid, exclude=exclude).runs) == 4


def test_an_entry_is_not_blamed_for_lists_that_are_wrong():
    assert mistakes(zip=[{"seed": [0, 1], "rounds": [1]}], exclude=[{"seed": 1}]) == [
        "zip, block 1: lists that advance together must be equally long: seed has 2, rounds has 1"
    ]
