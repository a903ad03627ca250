"""Aggregates over settings and seeds, as in rliable: interquartile mean, performance profile, improvement.

Source: Agarwal et al. 2021 (NeurIPS), arXiv 2108.13264. A run is a score of one setting and seed. Intervals are percentiles
of a stratified bootstrap, which resamples seeds within each setting. With few seeds they are too narrow. They do not
decide anything: verdicts come from `statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedbench.report.statistics import LEVEL, Comparison, Floats

RESAMPLES = 2000
Scores = Sequence[Floats]  # the scores of one method: an array [seeds] for each setting


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def scores(done: pd.DataFrame, settings: Sequence[str], metric: str = "mean_accuracy") -> dict[str, list[Floats]]:
    """{label: scores by setting} of methods that are done in every one of `settings`."""
    by_label = {}
    for label, of_label in done.dropna(subset=[metric]).groupby("label", sort=False):
        parts = {
            setting: part[metric].to_numpy(dtype=float) for setting, part in of_label.groupby("setting", sort=False)
        }
        if all(setting in parts for setting in settings):
            by_label[str(label)] = [parts[setting] for setting in settings]
    return by_label


def interquartile_mean(values: Floats) -> Floats:
    """The mean of the middle half of values [..., n]: a quarter of n, rounded down, is cut at each end."""
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(-1))


def iqm(method: Scores) -> Estimate:
    """The interquartile mean over all runs of a method."""
    drawn = interquartile_mean(np.concatenate([_redrawn(part, i) for i, part in enumerate(method)], axis=1))
    return _estimate(float(interquartile_mean(np.concatenate(method))), drawn)


def improvement(first: Scores, second: Scores) -> Estimate:
    """The probability that a run of `first` scores higher than one of `second` in the same setting, mean over settings.

    Every run of `first` is compared with every run of `second`. Equal scores count half (Mann-Whitney).
    """
    drawn = [
        _ahead(_redrawn(a, i), _redrawn(b, i + len(first))) for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    value = np.mean([_ahead(a[None], b[None])[0] for a, b in zip(first, second, strict=True)])
    return _estimate(float(value), np.mean(drawn, axis=0))


def profile(method: Scores, thresholds: Floats) -> Floats:
    """The share of runs that score more than each of `thresholds` [n]."""
    return np.asarray((np.concatenate(method)[:, None] > thresholds).mean(0))


def _ahead(a: Floats, b: Floats) -> Floats:
    """For each row of a [R, n] and b [R, m]: the share of pairs in which a is larger. Equal values count half."""
    return np.asarray(((np.sign(a[:, :, None] - b[:, None, :]) + 1) / 2).mean((1, 2)))


def _redrawn(values: Floats, stream: int) -> Floats:
    """`values` [n] drawn with replacement, [RESAMPLES, n]; the same draws for the same setting of every method."""
    draw = np.random.default_rng([0, stream])
    return values[draw.integers(0, len(values), (RESAMPLES, len(values)))]


def _estimate(value: float, drawn: Floats) -> Estimate:
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return Estimate(value, float(low), float(high))


def outcomes(
    within: Mapping[str, Sequence[Comparison]], names: Sequence[str]
) -> dict[tuple[str, str], tuple[int, int, int]]:
    """{(row, column): the tested settings in which row is better than, not different from, worse than column}."""
    counts = {(a, b): [0, 0, 0] for a in names for b in names if a != b}
    for pairs in within.values():
        for pair in pairs:
            for side in (pair, pair.reversed):
                if np.isfinite(side.p) and (side.first, side.second) in counts:
                    place = {"better": 0, "worse": 2}.get(side.verdict, 1)
                    counts[side.first, side.second][place] += 1
    return {names: (wins, ties, losses) for names, (wins, ties, losses) in counts.items() if wins + ties + losses}


At = Callable[[pd.DataFrame], float]


def at_equal_budget(records: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Mean accuracy of finished runs at the same budget: a row per setting and method, see `columns` below.

    records: setting, label, seed, state, round, mean_accuracy, reference and the cumulative column `cost`. The budget of a
    setting is the least that any contestant with a cost above zero has spent after its last round. A method's accuracy is
    that of its last evaluated round within the budget, mean over seeds; NaN if a seed exceeds it before its first evaluation.
    """
    columns = ["setting", "label", "reference", "budget", "accuracy", "round", "last"]
    rows = []
    done = records[records["state"] == "done"].dropna(subset=[cost, "mean_accuracy"])
    for setting, part in done.groupby("setting", sort=False):
        ends = part.sort_values("round", kind="stable").groupby(["label", "seed"], sort=False).tail(1)
        spent = ends[~ends["reference"].astype(bool)].groupby("label")[cost].mean()
        if not (spent > 0).any():
            continue
        budget = float(spent[spent > 0].min())
        for label, of_label in part.groupby("label", sort=False):
            inside = of_label[of_label[cost] <= budget * (1 + 1e-9)].sort_values("round", kind="stable")
            last = inside.groupby("seed").tail(1)
            whole = last["seed"].nunique() == of_label["seed"].nunique()
            end = ends.loc[ends["label"] == label, "mean_accuracy"].mean()
            rows.append(
                (
                    setting, label, bool(of_label["reference"].iloc[0]), budget,
                    float(last["mean_accuracy"].mean()) if whole else np.nan,
                    float(last["round"].mean()) if whole else np.nan, float(end),
                )
            )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
