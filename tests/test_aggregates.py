"""Aggregates over settings and seeds: rliable's definitions by hand, and accuracy at an equal budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedbench.report.aggregates import at_equal_budget, improvement, interquartile_mean, iqm, outcomes, profile, scores
from fedbench.report.statistics import compare_all


def test_the_interquartile_mean_is_the_trimmed_mean_of_scipy() -> None:
    for n in (1, 3, 4, 7, 12):
        values = np.random.default_rng(n).normal(size=n)
        assert float(interquartile_mean(values)) == pytest.approx(stats.trim_mean(values, 0.25))
    assert float(interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))) == 1.5


def test_the_bootstrap_draws_seeds_within_settings() -> None:
    """Settings that differ widely do not widen the interval: only seeds are drawn."""
    estimate = iqm([np.array([10.0, 11.0]), np.array([90.0, 91.0])])
    assert estimate.value == 50.5  # the mean of 11 and 90
    assert 50 <= estimate.low <= estimate.value <= estimate.high <= 51


def test_the_probability_of_improvement_is_the_mann_whitney_statistic_by_setting() -> None:
    a = [np.array([3.0, 5.0]), np.array([1.0, 1.0])]
    b = [np.array([4.0, 1.0]), np.array([1.0, 0.0])]
    # first setting: 3 > 1, 5 > 4, 5 > 1: 3 of 4; second: 1 = 1 twice, 1 > 0 twice: 3 of 4
    estimate = improvement(a, b)
    assert estimate.value == 0.75
    assert improvement(b, a).value == 0.25
    u = [stats.mannwhitneyu(x, y).statistic / 4 for x, y in zip(a, b, strict=True)]
    assert estimate.value == pytest.approx(np.mean(u))
    assert improvement(a, a).value == 0.5


def test_a_profile_counts_the_runs_above_a_threshold() -> None:
    shares = profile([np.array([10.0, 30.0]), np.array([20.0, 40.0])], np.array([5.0, 10.0, 25.0, 40.0]))
    assert shares.tolist() == [1.0, 0.75, 0.5, 0.0]


def test_only_methods_that_are_done_in_every_setting_are_aggregated() -> None:
    rows = [("A", "s", 1.0), ("A", "t", 2.0), ("B", "s", 3.0)]
    frame = pd.DataFrame(rows, columns=["label", "setting", "mean_accuracy"])
    assert list(scores(frame, ["s", "t"])) == ["A"]


def test_wins_ties_and_losses_are_counted_by_verdict() -> None:
    draw = np.random.default_rng(0)
    alike = 0.01 * draw.normal(size=(2, 4))
    apart = alike + np.array([[0.9], [0.1]])
    settings = {"s": apart, "t": alike, "u": apart[:, :1]}
    within = {name: compare_all(["A", "B"], part) for name, part in settings.items()}
    counts = outcomes(within, ["A", "B"])
    assert counts == {("A", "B"): (1, 1, 0), ("B", "A"): (0, 1, 1)}  # one seed tests nothing


def test_accuracy_at_an_equal_budget_by_hand() -> None:
    rows = []
    for label, each, accuracies in (
        ("thrifty", 10, (0.1, 0.2, 0.3)),
        ("costly", 20, (0.4, 0.5, 0.6)),
        ("free", 0, (0.25,) * 3),
    ):
        for seed in (0, 1):
            for at, accuracy in enumerate(accuracies, 1):
                rows.append(("S", label, seed, "done", at, accuracy + 0.02 * seed, False, each * at))
    rows += [("S", "huge", 0, "done", 3, 0.9, False, 1000.0), ("S", "lost", 0, "failed", 1, 0.9, False, 1.0)]
    rows += [("S", "reference", 0, "done", 1, 0.9, True, 1.0)]  # a reference sets no budget
    columns = ["setting", "label", "seed", "state", "round", "mean_accuracy", "reference", "sent"]
    budgets = at_equal_budget(pd.DataFrame(rows, columns=columns), "sent").set_index("label")
    assert set(budgets["budget"]) == {30.0}  # what `thrifty` has spent in all
    # costly has spent 20 after its first round and 40 after its second
    assert budgets["accuracy"].round(6).to_dict() == pytest.approx(
        {"thrifty": 0.31, "costly": 0.41, "free": 0.26, "huge": np.nan, "reference": 0.9}, nan_ok=True
    )
    assert budgets.loc["costly", "last"] == pytest.approx(0.61)
