"""Decides which of two methods is better: blocked comparisons with control of the family-wise error.

Replicates are whole trainings: the seeds of a setting, or the settings of a benchmark, are the blocks of a two-way layout
(method and block, no interaction term), and all differences are tested together by Tukey's honestly significant
difference. Clients share one trained model per seed, so they are not replicates: they describe a difference but do not
test it. `calibration` measures the error and power of these rules; docs/verdicts.md prints them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

LEVEL = 0.05  # family-wise, two-sided; intervals cover 1 - LEVEL together
SAME = 1e-12  # differences below this are rounding
NODES = 96  # nodes of quadratures, for seven digits

Floats = NDArray[np.float64]
NOT_TESTED, NO_DIFFERENCE = "not tested", "no significant difference"


@dataclass(frozen=True)
class ClientPairs:
    """Two methods compared client by client; a description, not a test.

    pairs: compared clients; ahead, equal, behind: in how many of them `first` is more, equally and less accurate;
    effect: matched-pairs rank-biserial correlation in [-1, 1] (Kerby 2014), 0 if all pairs are equal.
    """

    pairs: int
    ahead: int
    equal: int
    behind: int
    effect: float


@dataclass(frozen=True)
class Comparison:
    """`first` against `second`.

    blocks: how many seeds or settings were compared; difference: mean of first - second; low, high: simultaneous 95 %
    interval of all comparisons of the family; p: adjusted for the family; family: methods compared together; variance:
    residual variance of one value, from which the power follows; clients: the same pair client by client, if known.
    low, high, p and variance are NaN for a single block.
    """

    first: str
    second: str
    blocks: int
    difference: float
    low: float
    high: float
    p: float
    family: int
    variance: float
    clients: ClientPairs | None = None

    @property
    def verdict(self) -> str:
        """ "better", "worse", NO_DIFFERENCE, or NOT_TESTED for a single block; the interval decides."""
        if not math.isfinite(self.p):
            return NOT_TESTED
        if self.low > SAME:
            return "better"
        return "worse" if self.high < -SAME else NO_DIFFERENCE

    @property
    def significant(self) -> bool:
        """Whether the verdict is "better" or "worse"."""
        return self.verdict in ("better", "worse")

    @property
    def undecided(self) -> bool:
        """Whether the pair was tested and no difference was found."""
        return self.verdict == NO_DIFFERENCE

    @property
    def reversed(self) -> Comparison:
        """The comparison of `second` with `first`."""
        pairs = self.clients
        if pairs is not None:
            pairs = ClientPairs(pairs.pairs, pairs.behind, pairs.equal, pairs.ahead, -pairs.effect)
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            clients=pairs,
        )

    def sentence(self, blocks: str = "seeds") -> str:
        """The comparison in words, in percentage points."""
        numbers = f"{100 * self.difference:+.1f} points"
        if math.isfinite(self.p):
            numbers += f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}], {p_text(self.p)}"
        numbers += f", {self.blocks} {blocks if self.blocks != 1 else blocks.removesuffix('s')}"
        if (pairs := self.clients) is not None:
            numbers += (
                f"; of {pairs.pairs:,} clients {pairs.ahead:,} gain, {pairs.equal:,} tie, {pairs.behind:,} lose"
                f", effect {pairs.effect:+.2f}"
            )
        if self.significant:
            return f"{self.first} is {self.verdict} than {self.second} ({numbers})."
        what = "not tested" if self.verdict == NOT_TESTED else "not significantly different"
        return f"{self.first} and {self.second} are {what} ({numbers})."


def p_text(p: float) -> str:
    """A p-value with few digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def compare_all(names: Sequence[str], values: Floats) -> list[Comparison]:
    """Compares all pairs of M methods over B blocks. values: [M, B], larger is better, a column for each block.

    A two-way layout without interaction: blocks remove the effects that all methods share, the residual variance has
    (M - 1)(B - 1) degrees of freedom, and Tukey's studentised range covers all pairs. Source: Montgomery, Design and
    Analysis of Experiments, 4.1. `residual_variance` describes the adaptation to benchmark scores.
    """
    if len(names) < 2:
        return []
    if values.shape[1] < 2:
        return _comparisons(names, values.mean(1), None, values.shape[1], 0.0)
    return _comparisons(names, values.mean(1), blocked_error(values), values.shape[1], values.shape[1])


def compare_over_settings(names: Sequence[str], values: Floats) -> list[Comparison]:
    """Compares all pairs of M methods over T settings, each with the same S seeds. values: [M, T, S], T >= 2.

    Settings and seeds are both blocks. Runs of one seed share initial weights in all settings, so settings alone would
    understate the variation over seeds, and seeds alone say nothing about other settings. The error of a difference is the sum
    of both, with Satterthwaite's degrees of freedom. Source: Clark 1973, min F'. Not tested with a single seed.
    """
    settings, seeds = values.shape[1:]
    if len(names) < 2:
        return []
    if seeds < 2:
        return _comparisons(names, values.mean((1, 2)), None, settings, 0.0)
    return _comparisons(names, values.mean((1, 2)), crossed_error(values), settings, settings)


@dataclass(frozen=True)
class Error:
    """The error of the difference of two means, for each pair of methods: its variance divided by two [..., M, M] (that of one
    mean, as in the studentised range), and its degrees of freedom, one number or [..., M, M]."""

    variance: Floats
    freedom: NDArray[np.int64]

    def margins(self) -> Floats:
        """Half widths [..., M, M] of the simultaneous intervals."""
        return _critical_each(self.variance.shape[-1], self.freedom) * np.sqrt(self.variance)


def blocked_error(values: Floats) -> Error:
    """The error of differences of the means of values [..., M, B], B >= 2."""
    methods, blocks = values.shape[-2:]
    return Error(residual_variance(values) / blocks, np.array((methods - 1) * (blocks - 1)))


def crossed_error(values: Floats) -> Error:
    """The error of differences of the means of values [..., M, T, S] over settings and seeds, both at least 2."""
    over_settings, over_seeds = blocked_error(values.mean(-1)), blocked_error(values.mean(-2))
    a, b = over_settings.variance, over_seeds.variance
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = (a + b) ** 2 / (a**2 / over_settings.freedom + b**2 / over_seeds.freedom)
    least = np.minimum(over_settings.freedom, over_seeds.freedom)
    return Error(a + b, np.where(np.isfinite(freedom), np.floor(freedom + SAME), least).astype(np.int64))


def _comparisons(
    names: Sequence[str], mean: Floats, error: Error | None, blocks: int, replicates: float
) -> list[Comparison]:
    """The comparisons of `mean` [M], untested without an error. replicates: the number for which `variance` is given."""
    first, second = np.triu_indices(len(names), 1)
    difference = mean[first] - mean[second]
    half = p = variance = np.full(len(first), math.nan)
    if error is not None:
        half = error.margins()[first, second]
        variance = replicates * error.variance[first, second]
        freedom = np.broadcast_to(error.freedom, error.variance.shape)[first, second]
        deviation = np.sqrt(error.variance[first, second])
        ratio = np.where(np.abs(difference) < SAME, 0.0, np.abs(difference) / np.maximum(deviation, SAME))
        p = np.empty(len(first))
        for value in np.unique(freedom):
            p[freedom == value] = studentized_range_sf(ratio[freedom == value], len(names), int(value))
    low, high = difference - half, difference + half
    return [
        Comparison(
            first=names[i],
            second=names[j],
            blocks=blocks,
            difference=float(difference[k]),
            low=float(low[k]),
            high=float(high[k]),
            p=float(p[k]),
            family=len(names),
            variance=float(variance[k]),
        )
        for k, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    ]


def residual_variance(values: Floats) -> Floats:
    """The variance of one value for the test of each pair, [..., M, M], from values [..., M, B] with B >= 2.

    The largest of three: the residual mean square of the two-way layout, pooled over all methods; half the variance of
    the pair's own differences, which is larger if these two methods are noisier than the others; and the variance of
    rounding to the grid of the values (their smallest gap, g^2 / 12), since accuracies of few samples may coincide by
    rounding, and a residual of zero is not certainty.
    """
    blocks = values.shape[-1]
    methods = values.shape[-2]
    centred = values - values.mean(-1, keepdims=True) - values.mean(-2, keepdims=True)
    centred = centred + values.mean((-2, -1), keepdims=True)
    pooled = (centred**2).sum((-2, -1)) / ((methods - 1) * (blocks - 1))
    per_pair = (values[..., :, None, :] - values[..., None, :, :]).var(-1, ddof=1) / 2
    ordered = np.sort(values.reshape(*values.shape[:-2], -1).round(9), axis=-1)
    gaps = np.diff(ordered, axis=-1)
    grain = np.where(gaps > 0, gaps, np.inf).min(-1)
    rounding = np.where(np.isfinite(grain), grain, 0.0) ** 2 / 12
    return np.asarray(np.maximum(per_pair, np.maximum(pooled, rounding)[..., None, None]))


def client_pairs(difference: Floats) -> ClientPairs:
    """Counts and effect size of differences [n] between two methods' accuracies of the same clients."""
    difference = difference.round(12)
    moved = difference[difference != 0]
    effect = 0.0
    if len(moved):
        rank = average_rank(np.abs(moved))
        effect = float((rank * np.sign(moved)).sum() / rank.sum())
    ahead, behind = int((moved > 0).sum()), int((moved < 0).sum())
    return ClientPairs(len(difference), ahead, len(difference) - len(moved), behind, effect)


def average_rank(values: Floats) -> Floats:
    """Ranks of `values` [n] from 1, the smallest first; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place], dtype=float)


@dataclass(frozen=True)
class Ranking:
    """Average ranks over blocks, 1 is best, and the groups of neighbours that do not differ significantly.

    names: best first; ranks: likewise; cliques: longest runs (first, last) of neighbours among which no pair differs
    significantly.
    """

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    cliques: tuple[tuple[int, int], ...]


def rank(names: Sequence[str], values: Floats, pairs: Sequence[Comparison]) -> Ranking | None:
    """The ranking of values [M, blocks], larger is better; None for fewer than two methods or blocks."""
    count, blocks = values.shape
    if count < 2 or blocks < 2:
        return None
    mean = np.mean([average_rank(-column.round(12)) for column in values.T], axis=0)
    order = np.argsort(mean, kind="stable")
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.significant}
    ordered = tuple(names[i] for i in order)
    cliques: list[tuple[int, int]] = []
    for first in range(count):
        last = first
        while last + 1 < count and not any(
            frozenset((name, ordered[last + 1])) in apart for name in ordered[first : last + 1]
        ):
            last += 1
        if last > first and (not cliques or last > cliques[-1][1]):
            cliques.append((first, last))
    return Ranking(ordered, tuple(float(mean[i]) for i in order), blocks, tuple(cliques))


# -- distributions: importing them from scipy.stats takes longer than computing a report -------------------------------
def student_quantile(freedom: int) -> float:
    """The value that an absolute Student's t with `freedom` degrees exceeds with probability LEVEL; nan without any."""
    return float(stdtrit(freedom, 1 - LEVEL / 2))


def studentized_range_sf(q: Floats, groups: int, freedom: int) -> Floats:
    """P(Q > q) of the studentised range of `groups` means, elementwise; within 1e-6 of scipy's.

    The range of `groups` standard normal values exceeds w with probability 1 - W(w), and Q is that range over an
    independent s = sqrt(chi2 / freedom). Both integrals are computed by Gauss-Legendre quadrature.
    """
    z, weight = normal_nodes()
    s, mass = deviation_nodes(freedom)
    tails = []
    for part in np.array_split(np.ravel(q), max(1, np.size(q) // 256)):  # NODES x NODES each: bounds the memory
        inner = np.maximum(ndtr(z) - ndtr(z - part[:, None, None] * s[:, None]), 0.0) ** (groups - 1)
        tails.append(1 - groups * (inner * weight).sum(-1) @ mass)
    return np.asarray(np.clip(np.concatenate(tails).reshape(np.shape(q)), 0.0, 1.0))


@lru_cache(maxsize=1)
def normal_nodes() -> tuple[Floats, Floats]:
    """Nodes z and weights, which sum to 1, of integrals over a standard normal variable."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    return 8 * x, 8 * w * np.exp(-((8 * x) ** 2) / 2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=256)
def deviation_nodes(freedom: int) -> tuple[Floats, Floats]:
    """Nodes s and weights, which sum to 1, of integrals over s = sqrt(chi2 / freedom), an estimated standard deviation."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    low, high = np.sqrt(chdtri(freedom, [1 - 1e-9, 1e-9]) / freedom)
    s = (high + low) / 2 + (high - low) / 2 * x
    density = np.exp((freedom - 1) * np.log(s) - freedom / 2 * (s**2 - 1))  # but for a factor
    return s, np.asarray(w * density / (w * density).sum())


@lru_cache(maxsize=256)
def critical(groups: int, freedom: int, level: float = LEVEL) -> float:
    """The value that the studentised range exceeds with probability `level`, by bisection."""
    low, high = 0.0, 2000.0
    for _ in range(60):
        middle = (low + high) / 2
        if studentized_range_sf(np.array(middle), groups, freedom) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _critical_each(groups: int, freedom: NDArray[np.int64]) -> Floats:
    values, place = np.unique(freedom, return_inverse=True)
    each = np.array([critical(groups, int(value)) for value in values])
    return np.asarray(each[place].reshape(freedom.shape))
