"""Statistics against numbers worked out by hand, published tables, and what must hold of any data."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedbench.report import statistics
from fedbench.report.statistics import compare_all, holm, interval, rank, seeds_p, signed_rank, two_level
from fedbench.report.tables import contests


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


def test_signed_rank_by_hand() -> None:
    # ranks of |d|: 1 2 3 4 5; negative only the first: W+ = 14, W- = 1, effect (14 - 1) / 15
    # exact: sums <= 1 are {} and {1}: 2 of 32, two-sided 4 / 32
    p, effect = signed_rank(np.array([[-0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert p.tolist() == pytest.approx([4 / 32, 1.0])
    assert effect.tolist() == pytest.approx([13 / 15, 0.0])
    p, effect = signed_rank(np.array([[0.0, 0.2, -0.1]]))  # the zero is dropped: ranks 2 and 1
    assert effect.tolist() == pytest.approx([(2 - 1) / 3])


def test_seeds_p_by_hand() -> None:
    # d = .1 .2 .3: t = .2 / (.1 / sqrt 3) = 3.4641; on 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2) = .0742
    t = math.sqrt(12)
    found = seeds_p(np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]))
    assert found.tolist() == pytest.approx([1 - t / math.sqrt(t**2 + 2), 1.0, 0.0])


def test_interval_by_hand() -> None:
    # n = 2: t(.975, 1) = tan(.475 pi) = 12.7062; s / sqrt 2 = |a - b| / 2
    low, high = interval(np.array([0.4, 0.6]))
    assert (low, high) == pytest.approx((0.5 - math.tan(0.475 * math.pi) * 0.1, 0.5 + math.tan(0.475 * math.pi) * 0.1))
    assert all(math.isnan(end) for end in interval(np.array([0.4])))


def test_the_bootstrap_weighs_groups_alike_and_has_both_levels_of_variance() -> None:
    weights = two_level((40, 10))
    assert np.allclose(weights.sum(1), 1)
    assert weights[:, :40].sum(1).mean() == pytest.approx(0.5, abs=0.02)  # the larger group is no heavier
    draw = np.random.default_rng(1)
    groups, each = 30, 20
    seed_effect, client = draw.normal(0, 2.0, groups), draw.normal(0, 1.0, (groups, each))
    values = (seed_effect[:, None] + client).ravel()
    spread = (two_level((each,) * groups) @ values).std()
    # variance of a mean over drawn groups and members: between / groups + within / (groups each), roughly
    wanted = math.sqrt((seed_effect + client.mean(1)).var() / groups + client.var(1).mean() / (groups * each))
    assert spread == pytest.approx(wanted, rel=0.08)


def test_intervals_cover_what_they_should() -> None:
    """Of 200 experiments without a difference, about 5 % may be told apart, and with few seeds the words stay careful."""
    wrong = 0
    for number in range(200):
        draw = np.random.default_rng(number)
        (pair,) = compare_all(["A", "B"], draw.normal(0, 1, (2, 60)), np.repeat(np.arange(3), 20))
        wrong += pair.verdict != "not told apart"
    assert wrong <= 20  # a binomial(200, .05) exceeds 20 with probability .001


def test_words_follow_the_test_and_not_the_mean() -> None:
    seeds = np.repeat(np.arange(3), 30)
    draw = np.random.default_rng(0)
    base = draw.uniform(0.3, 0.9, 90)
    noisy = base + draw.normal(0.01, 0.2, 90)  # a larger mean, but no difference to speak of
    ahead = base + draw.normal(0.03, 0.02, 90)
    first, second, third = compare_all(["base", "noisy", "ahead"], np.stack([base, noisy, ahead]), seeds)
    assert first.difference != 0
    assert first.verdict == "not told apart"
    assert "are not told apart" in first.sentence()
    assert "better" not in first.sentence()
    assert second.verdict == "worse"
    assert second.turned.verdict == "better"
    assert second.turned.sentence(pairs="clients").startswith("ahead is better than base (+")
    assert second.difference == pytest.approx(base.mean() - ahead.mean())
    assert second.low < second.difference < second.high < 0
    assert second.beats == (base > ahead).mean()
    assert third.first == "noisy"


def test_a_difference_of_one_seed_alone_is_not_told_apart() -> None:
    """Many clients under one odd seed of three: the signed-rank test is sure, the interval over seeds is not."""
    seeds = np.repeat(np.arange(3), 100)
    base = np.random.default_rng(0).uniform(0.3, 0.9, 300)
    shift = np.where(seeds == 0, 0.2, -0.001)
    (pair,) = compare_all(["A", "B"], np.stack([base + shift + np.where(seeds == 1, 0.002, 0), base]), seeds)
    assert pair.difference > 0.06
    assert pair.low <= 0
    assert pair.verdict == "not told apart"


def test_unequal_numbers_of_clients_do_not_weigh_seeds() -> None:
    values = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    (pair,) = compare_all(["A", "B"], values, np.array([0, 0, 0, 1]))
    assert pair.difference == pytest.approx(0.5)  # the mean of the seeds' means 1 and 0


def test_critical_difference_is_the_published_one() -> None:
    # Demsar 2006, table 5(a): q(.05) for 2..10 methods
    table = {3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for count, q in table.items():
        values = np.random.default_rng(count).normal(size=(count, 12))
        found = rank([str(i) for i in range(count)], values)
        assert found is not None
        assert found.critical == pytest.approx(q * math.sqrt(count * (count + 1) / (6 * 12)), rel=5e-4)


def test_ranks_and_friedman_by_hand() -> None:
    # three methods, four blocks, always in the same order: ranks 1 2 3; chi2 = 12 N / (k (k + 1)) sum (R - 2)^2 = 8, p = e^-4
    values = np.array([[0.9, 0.8, 0.7, 0.9], [0.5, 0.5, 0.6, 0.6], [0.1, 0.2, 0.3, 0.1]])
    found = rank(["a", "b", "c"], values)
    assert found is not None
    assert (found.names, found.ranks) == (("a", "b", "c"), (1.0, 2.0, 3.0))
    assert found.p == pytest.approx(math.exp(-4))
    # critical: 2.343 sqrt(12 / 24) = 1.657: neighbours are joined, a and c are not
    assert found.cliques == [(0, 1), (1, 2)]
    equal = rank(["a", "b", "c"], np.ones((3, 4)))
    assert equal is not None
    assert (equal.p, equal.ranks, equal.cliques) == (1.0, (2.0, 2.0, 2.0), [(0, 2)])
    assert rank(["a", "b"], values[:2]) is None


# -- which runs are paired ---------------------------------------------------------------------------------------------
def frames(drop: tuple[str, int] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs, clients = [], []
    for setting in ("s", "t"):
        for label in ("A", "B", "C"):
            for seed in range(2):
                here = (label, seed) != drop or setting != "s"
                value = {"A": 0.9, "B": 0.6, "C": 0.3}[label]
                runs.append((setting, label, seed, False, "done" if here else "failed", value if here else math.nan))
                if here:
                    clients += [(setting, label, seed, k, k == 9, value + 0.01 * k) for k in range(10)]
    columns = ["setting", "label", "seed", "reference", "state", "mean_accuracy"]
    return pd.DataFrame(runs, columns=columns), pd.DataFrame(
        clients, columns=["setting", "label", "seed", "client", "held_out", "accuracy"]
    )


def test_pairs_are_clients_under_a_seed_and_held_out_clients_are_none() -> None:
    found = contests.within(*frames())
    assert set(found) == {"s", "t"}
    assert [(pair.first, pair.second, pair.n) for pair in found["s"]] == [
        ("A", "B", 18),
        ("A", "C", 18),
        ("B", "C", 18),
    ]
    assert found["s"][0].difference == pytest.approx(0.3)


def test_a_method_that_is_not_done_is_compared_nowhere_it_is_not() -> None:
    runs, clients = frames(("B", 1))
    found = contests.within(runs, clients)
    assert [(pair.first, pair.second) for pair in found["s"]] == [("A", "C")]
    assert len(found["t"]) == 3
    overall = contests.overall(runs)
    assert [(pair.first, pair.second) for pair in overall.pairs] == [("A", "C")]
    assert overall.ranking is None  # of two methods


def test_blocks_are_settings_once_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = frames()
    found = contests.overall(runs)
    assert found.ranking is not None
    assert (found.ranking.blocks, found.blocks) == (4, "4 pairs of setting and seed (2 settings)")
    monkeypatch.setattr(contests, "SETTINGS_ENOUGH", 2)
    found = contests.overall(runs)
    assert found.ranking is not None
    assert (found.ranking.blocks, found.blocks) == (2, "2 settings")


def test_against_the_best_the_nearest_comes_first() -> None:
    pairs = contests.within(*frames())["s"]
    found = contests.against_best(pairs, {"C": 0.3, "A": 0.9, "B": 0.6})
    assert [(pair.first, pair.second) for pair in found] == [("A", "B"), ("A", "C")]
    assert contests.against_best(pairs, {"B": 0.6, "C": 0.3})[-1].first == "B"
    assert statistics.LEVEL == 0.05
