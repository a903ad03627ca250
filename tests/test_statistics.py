"""Statistics against numbers worked out by hand, other software's distributions, and properties of any data."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedbench.report.power import blocks_needed, power
from fedbench.report.statistics import (
    NO_DIFFERENCE,
    NOT_TESTED,
    ClientPairs,
    Comparison,
    average_rank,
    blocked_error,
    client_pairs,
    compare_all,
    compare_over_settings,
    critical,
    p_text,
    rank,
    residual_variance,
    student_quantile,
    studentized_range_sf,
)
from fedbench.report.tables import contests


# -- distributions -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("groups", "freedom"), [(2, 1), (2, 4), (3, 2), (8, 7), (8, 14), (38, 74)])
def test_the_studentised_range_is_scipys(groups: int, freedom: int) -> None:
    q = np.linspace(0.0, 12, 7)
    np.testing.assert_allclose(
        studentized_range_sf(q, groups, freedom), stats.studentized_range.sf(q, groups, freedom), atol=1e-6
    )
    wanted = stats.studentized_range.ppf(0.95, groups, freedom)
    assert critical(groups, freedom) == pytest.approx(wanted, rel=1e-6)


def test_the_studentised_range_of_two_is_a_students_t() -> None:
    # |t| = q / sqrt 2; on 1 degree of freedom the 97.5 % point is tan(.475 pi)
    assert critical(2, 1) / math.sqrt(2) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-6)
    assert student_quantile(1) == pytest.approx(math.tan(0.475 * math.pi))


def test_average_ranks_share_ties() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0])
    assert average_rank(values).tolist() == [4, 1, 4, 2, 4]
    np.testing.assert_array_equal(average_rank(values), stats.rankdata(values))


# -- comparisons over blocks -------------------------------------------------------------------------------------------
# Three methods over four seeds: row means 5 3 1, column means 2 4 2 4, grand mean 3.
TABLE = np.array([[4.0, 6.0, 5.0, 5.0], [1.0, 5.0, 1.0, 5.0], [1.0, 1.0, 0.0, 2.0]])


def test_the_two_way_layout_by_hand() -> None:
    # column means: 2, 4, 2, 4; residual A: 4-5-2+3 = 0, 6-5-4+3 = 0, 5-5-2+3 = 1, 5-5-4+3 = -1
    # B: 1-3-2+3 = -1, 5-3-4+3 = 1, -1, 1; C: 1-1-2+3 = 1, 1-1-4+3 = -1, 0-1-2+3 = 0, 2-1-4+3 = 0
    # sum of squares 2 + 4 + 2 = 8 on (3 - 1)(4 - 1) = 6 degrees of freedom: 4 / 3
    # A - B: 3 1 4 0, variance 10 / 3, half of it 5 / 3 > 4 / 3; A - C: 3 5 5 3, variance 4 / 3, half of it less
    variance = residual_variance(TABLE)
    assert variance[0, 1] == pytest.approx(5 / 3)
    assert variance[0, 2] == pytest.approx(4 / 3)
    first, second, _ = compare_all(["A", "B", "C"], TABLE)
    q = stats.studentized_range.ppf(0.95, 3, 6)
    assert (first.difference, second.difference) == (2, 4)
    assert first.high - 2 == pytest.approx(q * math.sqrt(5 / 3 / 4), rel=1e-6)
    assert second.high - 4 == pytest.approx(q * math.sqrt(4 / 3 / 4), rel=1e-6)
    assert second.p == pytest.approx(stats.studentized_range.sf(4 / math.sqrt(1 / 3), 3, 6), abs=1e-6)
    assert (first.verdict, second.verdict) == (NO_DIFFERENCE, "better")
    assert second.reversed.verdict == "worse"
    assert (second.reversed.low, second.reversed.high) == (-second.high, -second.low)


def test_two_methods_are_compared_by_a_paired_t_test() -> None:
    values = np.random.default_rng(0).normal([[1.0], [0.0]], 1.0, (2, 6))
    (pair,) = compare_all(["A", "B"], values)
    wanted = stats.ttest_rel(values[0], values[1])
    assert pair.p == pytest.approx(wanted.pvalue, abs=1e-6)
    low, high = wanted.confidence_interval()
    assert (pair.low, pair.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))


def test_with_one_seed_nothing_is_called_better() -> None:
    (pair,) = compare_all(["A", "B"], np.array([[0.9], [0.1]]))
    assert (pair.difference, pair.verdict) == (pytest.approx(0.8), NOT_TESTED)
    assert math.isnan(pair.low)
    assert pair.sentence() == "A and B are not tested (+80.0 points, 1 seed)."
    over = compare_over_settings(["A", "B"], np.array([[[0.9], [0.8], [0.7]], [[0.1], [0.1], [0.1]]]))
    assert over[0].verdict == NOT_TESTED


def test_fewer_than_two_methods_make_no_comparison() -> None:
    for names in ([], ["A"]):
        assert compare_all(names, np.ones((len(names), 3))) == []
        assert compare_over_settings(names, np.ones((len(names), 3, 2))) == []


def test_zero_variance_is_no_certainty() -> None:
    """Accuracies of few samples repeat by rounding: a constant difference of one grain proves nothing over three seeds."""
    grainy = np.array([[0.2, 0.3, 0.2], [0.1, 0.2, 0.1]])  # a grain of .1, the same difference under each seed
    (pair,) = compare_all(["A", "B"], grainy)
    assert pair.p > 0.05
    assert residual_variance(grainy)[0, 1] == pytest.approx(0.1**2 / 12)
    (pair,) = compare_all(["A", "B"], np.array([[0.8, 0.81, 0.82], [0.5, 0.51, 0.52]]))
    assert pair.verdict == "better"  # thirty grains
    assert 0 < pair.p < 0.05
    (pair,) = compare_all(["A", "B"], np.full((2, 3), 0.5))
    assert (pair.p, pair.verdict) == (1.0, NO_DIFFERENCE)


def test_eight_equal_methods_with_coarse_worst_accuracies_are_rarely_called_different() -> None:
    """The worst of 20 clients with 10 test samples each: 2000 tables without any difference between the methods."""
    draw = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        hits = draw.binomial(10, draw.beta(4, 6, (2000, 1, seeds, 20)), (2000, 8, seeds, 20))
        values = hits.min(-1) / 10
        gap = values.mean(-1).max(-1)[:, None] - values.mean(-1)
        margin = np.take_along_axis(blocked_error(values).margins(), gap.argmin(-1)[:, None, None], 1)[:, 0]
        assert (gap > margin + 1e-12).any(-1).mean() < 0.06


def test_words_follow_the_interval_and_not_the_mean() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(0.5, 0.05, 5)
    values = np.stack([base, base + draw.normal(0.01, 0.03, 5), base + 0.1 + draw.normal(0, 0.003, 5)])
    first, second, _ = compare_all(["base", "noisy", "ahead"], values)
    assert "base and noisy are not significantly different (" in first.sentence()
    assert second.reversed.sentence().startswith("ahead is better than base (+")


def test_a_difference_over_settings_must_outlive_settings_and_seeds() -> None:
    draw = np.random.default_rng(1)
    noise = 0.002 * draw.normal(size=(3, 6, 4))
    steady = noise + np.array([0.6, 0.5, 0.4])[:, None, None]
    assert [pair.verdict for pair in compare_over_settings(["A", "B", "C"], steady)] == ["better"] * 3
    one_setting = noise + 0.5 + np.where(np.arange(6) == 2, [[0.3], [0.0], [0.0]], 0.0)[:, :, None]
    one_seed = noise + 0.5 + np.where(np.arange(4) == 1, [[0.3], [0.0], [0.0]], 0.0)[:, None, :]
    for values in (one_setting, one_seed):
        assert values[0].mean() > values[1].mean() + 0.04
        assert {pair.verdict for pair in compare_over_settings(["A", "B", "C"], values)} == {NO_DIFFERENCE}


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "p < 0.001"), (0.00099, "p < 0.001"), (0.001, "p = 0.001"), (0.0456, "p = 0.046"), (0.0996, "p = 0.100"),
     (0.1, "p = 0.10"), (0.456, "p = 0.46"), (1.0, "p = 1.00")],
)  # fmt: skip
def test_a_p_value_has_three_decimals_below_a_tenth_and_two_above(p: float, text: str) -> None:
    assert p_text(p) == text


def test_a_comparison_in_words_and_reversed() -> None:
    clients = ClientPairs(pairs=1200, ahead=700, equal=100, behind=400, effect=0.256)
    clear = Comparison("A", "B", 3, 0.0234, 0.0056, 0.0412, 0.0123, 4, 1e-4, clients)
    assert clear.sentence() == (
        "A is better than B (+2.3 points [+0.6, +4.1], p = 0.012, 3 seeds; of 1,200 clients 700 gain, 100 tie, 400 lose, "
        "effect +0.26)."
    )
    back = clear.reversed
    assert back.sentence("settings") == (
        "B is worse than A (-2.3 points [-4.1, -0.6], p = 0.012, 3 settings; of 1,200 clients 400 gain, 100 tie, 700 lose, "
        "effect -0.26)."
    )
    assert back.reversed == clear
    assert dataclasses.replace(clear, low=2e-12).significant
    assert dataclasses.replace(clear, low=0.5e-12).undecided
    assert dataclasses.replace(back, high=-2e-12).significant
    assert dataclasses.replace(back, high=-0.5e-12).undecided
    unknown = dataclasses.replace(clear, p=math.nan)
    assert (unknown.significant, unknown.undecided, unknown.verdict) == (False, False, NOT_TESTED)


def test_without_variance_any_difference_is_certain() -> None:
    assert power(0.01, 0.0, 3, 2) == 1.0
    assert power(0.0, 0.0, 3, 2) == 0.0
    assert blocks_needed(0.01, 0.0, 3) == 2


# -- clients, ranks, power ---------------------------------------------------------------------------------------------
def test_clients_by_hand() -> None:
    # ranks of |d|: 1 2 3 4 5; negative only the first: effect (14 - 1) / 15; two ties
    clients = client_pairs(np.array([-0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.0]))
    assert (clients.pairs, clients.ahead, clients.equal, clients.behind) == (7, 4, 2, 1)
    assert clients.effect == pytest.approx(13 / 15)
    assert client_pairs(np.zeros(3)).effect == 0


def test_the_ranking_joins_neighbours_without_a_significant_difference() -> None:
    values = np.array([[0.9, 0.8, 0.7, 0.9], [0.5, 0.5, 0.6, 0.6], [0.4, 0.45, 0.5, 0.5]])
    names = ["a", "b", "c"]
    ranking = rank(names, values, compare_all(names, values))
    assert ranking is not None
    assert (ranking.names, ranking.ranks, ranking.blocks) == (("a", "b", "c"), (1.0, 2.0, 3.0), 4)
    assert ranking.cliques == ((1, 2),)
    equal = rank(names, np.ones((3, 4)), compare_all(names, np.ones((3, 4))))
    assert equal is not None
    assert (equal.ranks, equal.cliques) == ((2.0, 2.0, 2.0), ((0, 2),))
    assert rank(["a"], values[:1], []) is None


def test_the_power_of_two_methods_is_that_of_a_paired_t_test() -> None:
    # noncentral t on n - 1 degrees of freedom, shifted by d / (sd sqrt(2 / n))
    n, sd, d = 6, 0.5, 0.8
    t = stats.t.ppf(0.975, n - 1)
    shift = d / (sd * math.sqrt(2 / n))
    wanted = stats.nct.sf(t, n - 1, shift) + stats.nct.cdf(-t, n - 1, shift)
    assert power(d, sd**2, 2, n) == pytest.approx(wanted, abs=1e-6)


def test_as_many_seeds_as_are_called_for_suffice_in_a_simulation() -> None:
    draw, sd = np.random.default_rng(0), 0.7
    for methods, d in ((2, 1.0), (8, 2.0)):
        needed = blocks_needed(d, sd**2, methods)
        assert needed is not None
        for blocks, enough in ((needed + 1, True), (needed - 2, False)):
            values = sd * draw.normal(size=(3000, methods, blocks))
            values[:, 0] += d
            gap = values[:, 0].mean(-1) - values[:, 1].mean(-1)
            share = float((gap > blocked_error(values).margins()[:, 0, 1]).mean())
            assert (share > 0.75) == enough, (methods, d, blocks, share)
    assert blocks_needed(0.001, 1.0, 4) is None


# -- which runs are compared -------------------------------------------------------------------------------------------
def frames(drop: tuple[str, int] | None = None, split: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of A, B, C and a reference R in two settings, three seeds, nine clients that train and one that does not."""
    runs, clients = [], []
    for setting in ("s", "t"):
        for label in ("A", "B", "C", "R"):
            for seed in range(3):
                here = (label, seed) != drop or setting != "s"
                value = {"A": 0.9, "B": 0.6, "C": 0.3, "R": 0.95}[label] + 0.01 * seed
                hash_ = "one" if split else f"split {seed}"
                done = "done" if here else "failed"
                runs.append((setting, label, seed, label == "R", done, value if here else math.nan, hash_))
                if here:
                    clients += [(setting, label, seed, k, k == 9, value + 0.01 * k) for k in range(10)]
    columns = ["setting", "label", "seed", "reference", "state", "mean_accuracy", "partition_hash"]
    return pd.DataFrame(runs, columns=columns), pd.DataFrame(
        clients, columns=["setting", "label", "seed", "client", "held_out", "accuracy"]
    )


def test_seeds_are_blocks_and_clients_describe() -> None:
    comparisons = contests.within(*frames())
    assert set(comparisons) == {"s", "t"}
    pairs = [(pair.first, pair.second, pair.blocks) for pair in comparisons["s"] if pair.second != "R"]
    assert pairs == [("A", "B", 3), ("A", "C", 3), ("B", "C", 3)]
    assert comparisons["s"][0].difference == pytest.approx(0.3)
    assert comparisons["s"][0].clients is not None
    assert comparisons["s"][0].clients.pairs == 27  # nine clients that train under each of three seeds


def test_clients_of_a_split_that_all_seeds_share_are_counted_once() -> None:
    clients = contests.within(*frames(split=True))["s"][0].clients
    assert clients is not None
    assert (clients.pairs, clients.ahead) == (9, 9)


def test_references_do_not_enlarge_the_family_of_contestants() -> None:
    runs, clients = frames()
    comparisons = contests.within(runs, clients)["s"]
    alone = contests.within(runs[runs["label"] != "R"], clients)["s"]
    assert [(pair.first, pair.second) for pair in comparisons[3:]] == [("A", "R"), ("B", "R"), ("C", "R")]
    assert [pair.p for pair in comparisons[:3]] == [pair.p for pair in alone]
    assert [pair.family for pair in comparisons] == [3, 3, 3, 4, 4, 4]


def test_a_method_that_is_not_done_is_not_compared_there() -> None:
    runs, clients = frames(("B", 1))
    comparisons = contests.within(runs, clients)
    assert [(pair.first, pair.second) for pair in comparisons["s"]] == [("A", "C"), ("A", "R"), ("C", "R")]
    assert len(comparisons["t"]) == 6
    overall = contests.overall(runs)
    assert [(pair.first, pair.second) for pair in overall.pairs] == [("A", "C")]


def test_over_all_settings_settings_are_the_blocks() -> None:
    runs, _ = frames()
    comparisons = contests.overall(runs)
    assert comparisons.ranking is not None
    assert (comparisons.ranking.blocks, comparisons.blocks) == (2, "2 settings and 3 seeds")
    assert comparisons.pairs[0].blocks == 2
    single = contests.overall(runs[runs["setting"] == "s"])
    assert (single.ranking, single.pairs) == (None, [])


def test_settings_that_share_no_seeds_are_ranked_and_not_tested() -> None:
    runs, _ = frames()
    comparisons = contests.overall(runs.assign(seed=runs["seed"] + 10 * (runs["setting"] == "t")))
    assert comparisons.ranking is not None
    assert {pair.verdict for pair in comparisons.pairs} == {NOT_TESTED}


def test_against_the_best_the_nearest_comes_first() -> None:
    pairs = contests.within(*frames())["s"][:3]
    against = contests.against_best(pairs, {"C": 0.3, "A": 0.9, "B": 0.6})
    assert [(pair.first, pair.second) for pair in against] == [("A", "B"), ("A", "C")]
    assert contests.against_best(pairs, {"B": 0.6, "C": 0.3})[-1].first == "B"


@pytest.mark.parametrize(
    ("seeds", "hashes", "shared"),
    [
        ([0, 1, 0, 1], ["a", "a", "a", "a"], True),
        ([0, 1, 0, 1], ["a", "b", "a", "b"], False),
        ([0, 0], ["a", "a"], False),  # one seed
        ([0, 1], ["a", None], False),  # the split of the second seed is not known
        ([0, 1, 2], ["a", None, "a"], True),
    ],
)
def test_seeds_share_a_split_if_two_are_known_to_have_the_same(
    seeds: list[int], hashes: list[str | None], shared: bool
) -> None:
    runs = pd.DataFrame({"seed": seeds, "partition_hash": hashes, "setting": "s"})
    assert contests.shares_split(runs) is shared
    assert not contests.shares_split(runs.drop(columns="partition_hash"))


@pytest.mark.parametrize("shared", [False, True])
def test_a_client_counts_once_where_seeds_share_a_split_and_held_out_clients_never(shared: bool) -> None:
    runs = pd.DataFrame({"setting": "s", "seed": [0, 1], "partition_hash": ["a", "a" if shared else "b"]})
    rows = [
        ("s", "A", 0, 0, False, 0.2), ("s", "A", 0, 1, False, 0.4), ("s", "A", 1, 0, False, 0.6),
        ("s", "A", 1, 1, True, 0.9), ("s", "A", 0, 0, False, 0.7), ("other", "A", 0, 0, False, 1.0),
        ("s", "B", 1, 0, False, 0.1),
    ]  # fmt: skip
    clients = pd.DataFrame(rows, columns=["setting", "label", "seed", "client", "held_out", "accuracy"])
    by_client = {label: values.to_dict() for label, values in contests._by_client(runs, clients).items()}
    if shared:
        assert by_client == {"A": {0: pytest.approx(0.4), 1: 0.4}, "B": {0: 0.1}}
    else:
        assert by_client == {"A": {(0, 0): 0.2, (0, 1): 0.4, (1, 0): 0.6}, "B": {(1, 0): 0.1}}
    assert contests._by_client(runs, clients.iloc[:0]) == {}


def test_settings_are_compared_over_the_seeds_that_all_of_them_have() -> None:
    """Settings x and y share seeds 1 and 2; C is not done in y; R is a reference."""
    rows = [
        (setting, label, seed, 0.5 + 0.1 * (label == "A") + 0.01 * seed + 0.2 * (setting == "y"), label == "R")
        for setting, seeds in (("x", (0, 1, 2)), ("y", (1, 2, 3)))
        for label in ("A", "B", "C", "R")
        for seed in seeds
        if not (label == "C" and setting == "y" and seed == 2)
    ]
    runs = pd.DataFrame(rows, columns=["setting", "label", "seed", "mean_accuracy", "reference"])
    made = contests.overall(runs)
    (pair,) = made.pairs
    assert (pair.first, pair.second, pair.blocks, made.blocks) == ("A", "B", 2, "2 settings and 2 seeds")
    assert pair.difference == pytest.approx(0.1)
    assert made.ranking is not None
    assert (made.ranking.names, made.ranking.ranks, made.ranking.blocks) == (("A", "B"), (1.0, 2.0), 2)
    wide = runs[runs["label"].isin(["A", "B"])].pivot(
        index="label", columns=["setting", "seed"], values="mean_accuracy"
    )
    assert np.allclose(contests._by_setting_and_seed(wide, ["y", "x"])[1], [[0.71, 0.72], [0.51, 0.52]])
    apart = runs[~((runs["setting"] == "y") & (runs["seed"] == 1))]  # one common seed
    wide = apart[apart["label"].isin(["A", "B"])].pivot(
        index="label", columns=["setting", "seed"], values="mean_accuracy"
    )
    assert np.allclose(contests._by_setting_and_seed(wide, ["x", "y"])[:, :, 0], [[0.61, 0.825], [0.51, 0.725]])
    assert contests.overall(runs[runs["setting"] == "x"]) == contests.Overall(None, [], "")
    assert contests.overall(runs[runs["label"] == "A"]) == contests.Overall(None, [], "")


def test_a_comparison_of_published_columns_has_one_row_for_each_pair() -> None:
    clients = ClientPairs(pairs=12, ahead=7, equal=1, behind=4, effect=0.25)
    pair = Comparison("A", "B", 3, 0.02, 0.01, 0.03, 0.012, 4, 1e-4, clients)
    frame = contests.as_frame({"s": [pair, dataclasses.replace(pair.reversed, clients=None)]})
    assert frame.iloc[0].tolist() == ["s", "A", "B", 3, 0.02, 0.01, 0.03, 0.012, "better", 4, 12, 7, 1, 4, 0.25]
    assert frame.iloc[1].tolist()[:10] == ["s", "B", "A", 3, -0.02, -0.03, -0.01, 0.012, "worse", 4]
    assert frame.iloc[1, 10:].isna().all()
    assert frame.columns.tolist() == list(contests.COLUMNS)
