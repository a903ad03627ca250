"""Which of two methods is better, and how sure that is: paired tests, intervals, effect sizes and ranks; no torch.

Pairs are what both methods met alike: the same client under the same seed, or the same setting under the same seed.
What a report may say of two methods is `Comparison.verdict`, never a difference of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05  # of every test, two-sided; intervals cover 1 - LEVEL
RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """`first` against `second` over n pairs.

    difference, low, high: mean of first - second and its bootstrap interval; p: of the signed-rank test, adjusted for
    all comparisons made together; effect: matched-pairs rank-biserial correlation, in [-1, 1]; beats: the probability
    that `first` has the larger value in a pair, equal pairs counted half.
    """

    first: str
    second: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    effect: float
    beats: float

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "not told apart".

        A difference counts where the test rejects equality and the interval leaves out zero on the side of the effect:
        the test speaks of pairs as they are, the interval also of the few seeds that they come from.
        """
        if self.p < LEVEL and self.low > 0 and self.effect > 0:
            return "better"
        if self.p < LEVEL and self.high < 0 and self.effect < 0:
            return "worse"
        return "not told apart"

    @property
    def turned(self) -> Comparison:
        """The same with the two sides exchanged."""
        return Comparison(
            self.second,
            self.first,
            self.n,
            -self.difference,
            -self.high,
            -self.low,
            self.p,
            -self.effect,
            1 - self.beats,
        )

    def sentence(self, unit: float = 100.0, pairs: str = "pairs") -> str:
        """The comparison in words; differences times `unit`."""
        low, high = unit * self.low, unit * self.high
        numbers = (
            f"{unit * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}], {p_text(self.p)}, "
            f"effect {self.effect:+.2f}, ahead in {100 * self.beats:.0f} % of {self.n:,} {pairs}"
        )
        if self.verdict == "not told apart":
            return f"{self.first} and {self.second} are not told apart ({numbers})."
        return f"{self.first} is {self.verdict} than {self.second} ({numbers})."


def p_text(p: float) -> str:
    """A p-value as a reader wants it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def compare_all(names: Sequence[str], values: Floats, seeds: NDArray[np.int64]) -> list[Comparison]:
    """Every two of M methods. values: [M, n], column j being one pair-mate of seed ``seeds[j]`` for all methods.

    Wilcoxon's signed-rank test on each two rows, with Holm's correction over all of them; intervals by a paired
    bootstrap on two levels, seeds and then pairs within a seed (with one seed: pairs alone, and the interval does not
    speak of other seeds). Sources: Wilcoxon 1945; Holm 1979; Kerby 2014 (rank-biserial); Davison and Hinkley 1997, 3.8.
    """
    a, b = np.triu_indices(len(names), 1)
    if not len(a) or values.shape[1] == 0:
        return []
    difference = values[a] - values[b]
    p, effect = signed_rank(difference)
    p = holm(p)
    _, mine = np.unique(seeds, return_inverse=True)
    order = np.argsort(mine, kind="stable")
    weights = two_level(tuple(np.bincount(mine).tolist()))
    means = weights @ values[:, order].T  # [resamples, M]
    low, high = np.quantile(means[:, a] - means[:, b], [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    per_seed = np.bincount(mine)
    middle = (difference / (per_seed[mine] * len(per_seed))).sum(1)
    beats = (difference > 0).mean(1) + (difference == 0).mean(1) / 2
    columns = [column.tolist() for column in (a, b, middle, low, high, p, effect, beats)]
    return [Comparison(names[i], names[j], values.shape[1], *rest) for i, j, *rest in zip(*columns, strict=True)]


def signed_rank(difference: Floats) -> tuple[Floats, Floats]:
    """(p, rank-biserial correlation) of each row of differences [rows, n]; all zero: p = 1 and no effect.

    Zero differences are dropped, as Wilcoxon did. Exact for small samples without ties, else by the normal law.
    """
    from scipy.stats import wilcoxon  # slow to import

    ranked = (difference != 0).sum(1)
    p, effect = np.ones(len(difference)), np.zeros(len(difference))
    rows = np.flatnonzero(ranked > 0)
    if len(rows):
        with np.errstate(invalid="ignore", divide="ignore"):
            p[rows] = np.nan_to_num(wilcoxon(difference[rows], axis=1).pvalue, nan=1.0)
            above = wilcoxon(difference[rows], axis=1, alternative="greater", method="approx").statistic
        effect[rows] = 2 * above / (ranked[rows] * (ranked[rows] + 1) / 2) - 1
    return p, effect


def holm(p: Floats) -> Floats:
    """Holm's step-down adjustment of p-values that are judged together."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


@lru_cache(maxsize=32)
def two_level(sizes: tuple[int, ...]) -> Floats:
    """Weights [resamples, sum of sizes] of a bootstrap that draws groups, then members of each group drawn.

    Each row sums to 1 and weighs all groups drawn alike. The draws are the same for the same sizes.
    """
    draw = np.random.default_rng(0)
    times = draw.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES)  # [R, groups]
    parts = [
        draw.multinomial(times[:, g] * size, np.full(size, 1 / size)) / (size * len(sizes))
        for g, size in enumerate(sizes)
    ]
    return np.concatenate(parts, axis=1)


def interval(values: Floats) -> tuple[float, float]:
    """Student's t interval of the mean of `values` [n], NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(values.mean()) - half, float(values.mean()) + half


@lru_cache(maxsize=256)
def quantile(freedom: int) -> float:
    """Of Student's t distribution, which an absolute t exceeds with probability LEVEL."""
    from scipy.stats import t as student  # slow to import

    return float(student.ppf(1 - LEVEL / 2, freedom))


def seeds_p(difference: Floats) -> Floats:
    """p of a paired t-test on each row of differences [rows, seeds]; constant rows: 0, or 1 where they are zero."""
    from scipy.stats import t as student

    n = difference.shape[1]
    mean, error = difference.mean(1), difference.std(1, ddof=1) / math.sqrt(n)
    constant = error < 1e-12
    t = np.abs(mean) / np.where(constant, 1.0, error)
    p = 2 * student.sf(t, n - 1)
    return np.asarray(np.where(constant, np.where(np.abs(mean) < 1e-12, 1.0, 0.0), p))


@dataclass(frozen=True)
class Ranking:
    """Average ranks of M methods over N blocks (1 is best), Friedman's p, and Nemenyi's critical difference."""

    names: tuple[str, ...]  # best first
    ranks: tuple[float, ...]
    blocks: int
    p: float
    critical: float

    @property
    def cliques(self) -> list[tuple[int, int]]:
        """Longest runs (first, last) of neighbours in the ranking that are not told apart; runs of one left out."""
        if self.p >= LEVEL:
            return [(0, len(self.names) - 1)] if len(self.names) > 1 else []
        found: list[tuple[int, int]] = []
        for first, rank in enumerate(self.ranks):
            last = max(i for i, other in enumerate(self.ranks) if other - rank < self.critical)
            if last > first and (not found or last > found[-1][1]):
                found.append((first, last))
        return found


def rank(names: Sequence[str], values: Floats) -> Ranking | None:
    """Ranks of the rows of values [M, N blocks], larger is better; None for fewer than 3 methods or 2 blocks.

    Two methods differ where their average ranks do by q / sqrt(2) * sqrt(M (M + 1) / (6 N)), q being the studentised
    range's quantile for M groups and infinite degrees of freedom. Source: Demsar 2006, JMLR 7.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    count, blocks = values.shape
    if count < 3 or blocks < 2:
        return None
    mean = rankdata(-values, axis=0).mean(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = float(friedmanchisquare(*values).pvalue)
    critical = studentized_range.ppf(1 - LEVEL, count, np.inf) / math.sqrt(2)
    critical *= math.sqrt(count * (count + 1) / (6 * blocks))
    order = np.argsort(mean, kind="stable")
    chosen, ranks = tuple(names[i] for i in order), tuple(float(mean[i]) for i in order)
    return Ranking(chosen, ranks, blocks, 1.0 if math.isnan(p) else p, float(critical))
