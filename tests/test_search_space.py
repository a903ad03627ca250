"""The numbers of a tuning by hand: points of ranges, their edges, widened ranges, neighbours, rungs and budgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedbench.plan.config import ConfigError
from fedbench.plan.search_space import check_range, edge_of, point, share_of, widened
from fedbench.plan.tuning import _Search, budget_rounds, repeats, rungs

LOG, LINEAR, CHOICE = {"log": (0.01, 1.0)}, {"linear": (-1.0, 3.0)}, {"choice": ("a", "b", "c")}


@pytest.mark.parametrize(
    ("range_", "share", "value"),
    [
        (LOG, 0.0, 0.01), (LOG, 0.25, 0.0316), (LOG, 0.5, 0.1), (LOG, 1.0, 1.0), (LOG, 1.5, 10.0), (LOG, -0.5, 0.001),
        (LINEAR, 0.0, -1.0), (LINEAR, 0.25, 0.0), (LINEAR, 1.25, 4.0), ({"linear": (0, 1)}, 1 / 3, 0.333),
        (CHOICE, 0.0, "a"), (CHOICE, 0.34, "b"), (CHOICE, 0.99, "c"), (CHOICE, 1.0, "c"),
    ],
)  # fmt: skip
def test_a_share_of_a_range_is_a_value_with_three_digits(range_: Any, share: float, value: Any) -> None:
    assert point(range_, share) == value


@pytest.mark.parametrize(
    ("range_", "value", "share"),
    [
        (LOG, 0.01, 0.0), (LOG, 0.1, 0.5), (LOG, 10.0, 1.5), (LINEAR, 0, 0.25), (LINEAR, 5.0, 1.5),
        (LOG, 0.0, None), (LOG, -1.0, None), (LOG, True, None), (LOG, None, None), (CHOICE, "a", None),
        ({"choice": (1, 2)}, 1, None),
    ],
)  # fmt: skip
def test_the_share_of_a_value_is_the_inverse(range_: Any, value: Any, share: float | None) -> None:
    assert share_of(range_, value) == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("value", "strata", "side"),
    [(-1.0, 4, -1), (-0.01, 4, -1), (0.0, 4, 0), (1.0, 4, 0), (2.0, 4, 0), (2.01, 4, 1), (3.0, 4, 1), (3.1, 4, 0),
     (-1.1, 4, 0), (-1.0, 2, 0), (3.0, 2, 0), (-1.0, 3, -1), (None, 4, 0)],
)  # fmt: skip
def test_the_outer_strata_of_a_range_are_its_edges(value: float | None, strata: int, side: int) -> None:
    assert edge_of(LINEAR, value, strata) == side


def test_a_range_is_widened_by_a_third_of_its_width_at_one_side() -> None:
    assert widened(LINEAR, 1) == {"linear": (-1.0, 4.33)}
    assert widened(LINEAR, -1) == {"linear": (-2.33, 3.0)}
    assert widened({"log": (0.001, 1.0)}, 1) == {"log": (0.001, 10.0)}
    assert widened({"log": (0.001, 1.0)}, -1) == {"log": (0.0001, 1.0)}


@pytest.mark.parametrize(
    ("range_", "message"),
    [
        ({}, "expected {log"), ({"normal": (0, 1)}, "expected {log"), ({"log": (1, 2), "linear": (1, 2)}, "expected {log"),
        ({"choice": ()}, "expected {log"), ({"log": (1, 2, 3)}, "expected two numbers"), ({"log": (1, "a")}, "expected two"),
        ({"linear": (False, 2)}, "expected two numbers"), ({"linear": (0, float("inf"))}, "expected two numbers"),
        ({"linear": (1, 1)}, "expected low < high"), ({"log": (0, 1)}, "starts above 0, not at 0"),
        ({"log": (-1, 1)}, "starts above 0, not at -1"),
    ],
)  # fmt: skip
def test_a_range_that_is_none_is_refused(range_: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_range("local.lr", range_)
    for legal in (LOG, LINEAR, CHOICE, {"linear": (-2, -1)}, {"choice": (1,)}):
        check_range("local.lr", legal)


@pytest.mark.parametrize(
    ("trials", "rounds", "of_run", "steps"),
    [
        (12, None, 100, [(12, 100)]),
        (12, 25, 100, [(12, 25), (6, 50), (3, 100)]),
        (12, 30, 100, [(12, 30), (6, 60), (3, 100)]),
        (10, 10, 80, [(10, 10), (5, 20), (3, 40), (3, 80)]),
        (2, 50, 100, [(2, 50), (2, 100)]),
        (4, 500, 100, [(4, 100)]),
    ],
)
def test_each_rung_has_half_the_trials_and_twice_the_rounds(
    trials: int, rounds: int | None, of_run: int, steps: list[tuple[int, int]]
) -> None:
    assert rungs(SimpleNamespace(trials=trials, rounds=rounds), of_run) == steps  # type: ignore[arg-type]


def test_a_budget_counts_the_rounds_of_all_trials_and_of_the_finalists_on_further_seeds() -> None:
    assert budget_rounds([(12, 25), (6, 50), (3, 100)]) == 300 + 300 + 300
    assert budget_rounds([(12, 25), (6, 50), (3, 100)], 2) == 900 + 2 * 3 * 100
    assert budget_rounds([(2, 100)], 1) == 200 + 200


@pytest.mark.parametrize(
    ("trials", "seeds", "per_seed", "of_runs", "further"),
    [
        (8, 3, False, 5, 2),
        (8, 3, False, 2, 1),
        (8, 1, False, 5, 0),
        (8, 3, True, 5, 0),
        (1, 3, False, 5, 0),
        (2, 3, False, 5, 2),
    ],
)
def test_finalists_are_repeated_on_as_many_seeds_as_there_are(
    trials: int, seeds: int, per_seed: bool, of_runs: int, further: int
) -> None:
    assert repeats(SimpleNamespace(trials=trials, seeds=seeds, per_seed=per_seed), of_runs) == further  # type: ignore[arg-type]


def search(late: int, strata: int, **ranges: Any) -> _Search:
    made = object.__new__(_Search)
    made.__dict__ |= {"late": late, "strata": strata, "ranges": ranges}
    return made


@pytest.mark.parametrize(
    ("best", "late", "values"),
    [
        (1.0, 2, [0.5, 1.5]),  # within -1 .. 3 in four strata: 0 to 2
        (1.0, 3, [0.25, 0.75, 1.25]),  # four strata, of which the last is left out
        (-1.0, 2, [-0.75, -0.25]),  # not below the range
        (3.0, 2, [2.25, 2.75]),
        (3.4, 2, [2.65, 3.15]),  # a value beyond the range, which was found there, may be its end
        (-1.4, 2, [-1.15, -0.65]),
    ],
)
def test_late_trials_lie_within_a_stratum_of_the_best(best: float, late: int, values: list[float]) -> None:
    points = search(late, 4, x=LINEAR, y=CHOICE)._around(SimpleNamespace(values={"x": best, "y": "b", "z": 7}))  # type: ignore[arg-type]
    assert [at["x"] for at in points] == pytest.approx(values)
    assert all((at["y"], at["z"]) == ("b", 7) for at in points)


def test_late_trials_beyond_an_edge_lie_evenly_up_to_the_end_of_the_widened_range() -> None:
    best = SimpleNamespace(values={"x": 2.9, "y": 0.02, "z": 7})
    points = search(2, 4, x={"linear": (0.0, 3.0)}, y={"log": (0.001, 1.0)})._beyond(best, {"x": 1, "y": -1})  # type: ignore[arg-type]
    assert points == [{"x": 3.5, "y": 0.000316, "z": 7}, {"x": 4.0, "y": 0.0001, "z": 7}]


def test_the_best_trials_are_promoted_with_trial_0_among_them() -> None:
    accuracies = {0: 0.1, 1: 0.5, 2: None, 3: 0.7, 4: 0.7}
    trials = [SimpleNamespace(number=n, order=(-1.0 if a is None else a, -n)) for n, a in accuracies.items()]
    for count, numbers in ((1, [0]), (2, [0, 3]), (3, [0, 3, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])):
        assert [trial.number for trial in search(2, 4)._promoted(trials, count)] == numbers  # type: ignore[arg-type]
    assert [trial.number for trial in search(2, 4)._promoted(trials[1:], 2)] == [3, 4]  # type: ignore[arg-type]
