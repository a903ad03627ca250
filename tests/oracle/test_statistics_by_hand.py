"""Errors over settings, effects over clients and equal budgets, by their published formulas and by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedbench.report.aggregates import at_equal_budget, improvement, iqm
from fedbench.report.statistics import client_pairs, compare_all, compare_over_settings, crossed_error

NAN = math.nan


def test_the_error_over_settings_is_satterthwaites_of_both_blocks() -> None:
    """Montgomery's two-way layout over settings and over seeds, each by its formula, and Clark's sum of both."""
    values = np.random.default_rng(5).normal(size=(3, 6, 4)) * [[[1.0]], [[0.5]], [[2.0]]]
    values += np.random.default_rng(6).normal(size=(3, 1, 4))
    variance, freedom = [], []
    for blocks in (values.mean(2), values.mean(1)):
        methods, count = blocks.shape
        rest = sum(
            (blocks[m, b] - blocks[m].mean() - blocks[:, b].mean() + blocks.mean()) ** 2
            for m in range(methods)
            for b in range(count)
        )
        pooled = rest / ((methods - 1) * (count - 1))
        pair = np.var(blocks[0] - blocks[2], ddof=1) / 2
        variance.append(max(pooled, pair) / count)
        freedom.append((methods - 1) * (count - 1))
    a, b = variance
    both = int((a + b) ** 2 / (a**2 / freedom[0] + b**2 / freedom[1]))
    assert freedom == [10, 6]
    assert both not in (int((a + b) ** 2 / (a / freedom[0] + b**2 / freedom[1])), 10, 6)
    error = crossed_error(values)
    assert error.variance[0, 2] == pytest.approx(a + b)
    assert error.freedom[0, 2] == both
    pair = compare_over_settings(["A", "B", "C"], values)[1]
    assert (pair.first, pair.second, pair.blocks, pair.family) == ("A", "C", 6, 3)
    difference = values[0].mean() - values[2].mean()
    half = stats.studentized_range.ppf(0.95, 3, both) * math.sqrt(a + b)
    assert (pair.low, pair.high) == pytest.approx((difference - half, difference + half), rel=1e-6)
    ratio = abs(difference) / math.sqrt(a + b)
    assert pair.p == pytest.approx(stats.studentized_range.sf(ratio, 3, both), abs=1e-6)
    assert pair.variance == pytest.approx(6 * (a + b))


def test_equal_values_over_settings_have_the_smaller_degrees_of_freedom() -> None:
    assert set(crossed_error(np.ones((3, 6, 4))).freedom.ravel().tolist()) == {6}


def test_the_effect_over_clients_weighs_signs_by_ranks_of_sizes() -> None:
    # sizes .5 .1 .2 .2: ranks 4, 1, 2.5, 2.5; gains 1 + 2.5, losses 4 + 2.5, of 10
    clients = client_pairs(np.array([-0.5, 0.1, 0.2, -0.2, 0.0]))
    assert (clients.pairs, clients.ahead, clients.equal, clients.behind) == (5, 2, 1, 2)
    assert clients.effect == pytest.approx((3.5 - 6.5) / 10)


def test_a_budget_is_what_the_thriftiest_method_that_spends_has_spent() -> None:
    columns = ["setting", "label", "seed", "state", "round", "mean_accuracy", "reference", "sent"]
    rows = [
        ("free", "A", 0, "done", 5, 0.5, False, 0.0),
        ("dear", "A", 0, "done", 10, 0.2, False, 10.0),
        ("dear", "A", 0, "done", 5, 0.1, False, 5.0),
        ("dear", "A", 1, "done", 10, 0.4, False, 10.0),
        ("dear", "A", 1, "done", 5, 0.3, False, 5.0),
        ("dear", "B", 0, "done", 4, 0.6, False, 10.0),
        ("dear", "B", 0, "done", 8, 0.8, False, 20.0),
        ("dear", "B", 1, "done", 4, 0.7, False, 10.5),  # more than the budget
        ("dear", "B", 1, "done", 8, 0.9, False, 20.0),
        ("dear", "C", 0, "done", 8, 0.5, False, 0.0),
    ]
    budgets = at_equal_budget(pd.DataFrame(rows, columns=columns), "sent")
    expected = pd.DataFrame(
        [
            ("dear", "A", False, 10.0, 0.3, 10.0, 0.3),
            ("dear", "B", False, 10.0, NAN, NAN, 0.85),
            ("dear", "C", False, 10.0, 0.5, 8.0, 0.5),
        ],
        columns=["setting", "label", "reference", "budget", "accuracy", "round", "last"],
    )
    pd.testing.assert_frame_equal(budgets, expected)


def test_intervals_hold_what_resampled_seeds_give() -> None:
    """Two seeds are drawn as 0 0, 0 1, 1 0 or 1 1: the ends have a quarter each, so the interval reaches both."""
    two, half = [np.array([0.0, 1.0])], [np.array([0.5])]
    assert (iqm(two).low, iqm(two).value, iqm(two).high) == (0.0, 0.5, 1.0)
    chance = improvement(two, half)
    assert (chance.low, chance.value, chance.high) == (0.0, 0.5, 1.0)
    # Each side is drawn by itself: with the same draws for both, nothing would differ.
    many = [np.arange(20.0)]
    chance = improvement(many, many)
    assert chance.value == 0.5
    # The variance of the Mann-Whitney share of 20 and 20 values: 1/12 (1/20 + 1/20), nearly.
    assert (chance.high - chance.low) / 2 == pytest.approx(1.96 * np.sqrt(1 / 120), rel=0.1)
    twice = improvement(many * 2, many * 2)  # two settings
    assert (twice.high - twice.low) / 2 == pytest.approx(1.96 * np.sqrt(1 / 240), rel=0.1)


def test_two_blocks_are_enough_for_a_test() -> None:
    values = np.array([[0.5, 0.75], [0.25, 0.25]])
    (pair,) = compare_all(["A", "B"], values)
    assert pair.p == pytest.approx(stats.ttest_rel(values[0], values[1]).pvalue, abs=1e-6)
    (over,) = compare_over_settings(["A", "B"], np.stack([values, values + np.array([[0.1], [0.0]])], axis=1))
    assert math.isfinite(over.p)
