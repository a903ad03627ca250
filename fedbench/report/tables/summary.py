"""Runs to cells: the last round of each run, mean and spread over seeds, what is best and what is tied with it.

Everything here is a pure function of a data frame with one row per run (see `metrics.COLUMNS`). The value of a run is
its last round's, and only a run that is done has a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from fedbench.report.statistics import LEVEL, Comparison, holm, quantile, seeds_p
from fedbench.report.tables.metrics import MAIN, METRIC, PROVENANCE, RANKED, STATES, Mark


def with_last_round(plan: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """`plan` (one row per run: run, setting, label, ..., state, rounds) joined with each run's last record.

    The last record is the one of the highest round, never the best one. Metrics of a run that is not done are dropped,
    hashes stay. A run that says it is done but whose records stop short of its rounds, or hold no mean accuracy, becomes
    "failed" and says so: it has no last round to show.
    """
    taken = ["round", *PROVENANCE, *METRIC]
    if records.empty:
        last = pd.DataFrame(columns=["run", *taken])
    else:
        newest = records.sort_values(["run", "round"], kind="stable").drop_duplicates("run", keep="last")
        last = newest.reindex(columns=["run", *taken])
    runs = plan.merge(last, on="run", how="left", validate="many_to_one")
    for name in ("round", *METRIC):
        runs[name] = pd.to_numeric(runs[name]).astype(float)
    cut = (runs["state"] == "done") & ~(runs["round"] >= runs["rounds"])
    empty = (runs["state"] == "done") & ~cut & ~np.isfinite(runs["mean_accuracy"])
    runs.loc[cut, "said"] = "marked as done, but its records end before its last round"
    runs.loc[empty, "said"] = "marked as done, but its last record holds no mean accuracy"
    runs.loc[cut | empty, "state"] = "failed"
    runs.loc[runs["state"] != "done", list(METRIC)] = math.nan
    return runs


def summary(runs: pd.DataFrame, contests: Mapping[str, Sequence[Comparison]] | None = None) -> pd.DataFrame:
    """One row per setting, method and metric: n seeds with a value `of` those any method has there, mean, sample std.

    Shares are in [0, 1], bytes in bytes. std, and low and high of Student's 95 % interval of the mean, are NaN for one
    seed. `mark` is "best" for the largest mean among complete cells (n = of) of methods that are not references, "tied"
    for a complete cell that is not told apart from the best: in mean accuracy by the setting's `contests` where they
    hold the pair, else by a paired t-test over seeds with Holm's correction. The states' columns count runs; `absent`
    counts seeds without a planned run. Order: as in `runs`, references last.
    """
    contests = contests or {}
    runs = runs.drop_duplicates(["setting", "label", "seed"])  # `alarms` tells of the others
    names = list(METRIC)
    cells = runs.groupby(["setting", "label"], sort=False)
    count, mean, std = cells[names].count(), cells[names].mean(), cells[names].std()
    states = runs.groupby(["setting", "label", "state"], sort=False).size().unstack("state", fill_value=0)
    states = states.reindex(columns=[state for state in STATES if state != "absent"], fill_value=0)
    planned = runs.groupby("setting", sort=False)["seed"].nunique()
    first = cells[["dataset", "partition", "backbone", "method", "reference"]].first()
    marks = {
        setting: _marks(group, int(planned[setting]), contests.get(str(setting), ()))
        for setting, group in runs.groupby("setting", sort=False)
    }
    parts = []
    for name in names:
        part = first.copy()
        part["metric"] = name
        part["n"] = count[name]
        part["of"] = planned.reindex(part.index.get_level_values("setting")).to_numpy()
        part["mean"], part["std"] = mean[name], std[name]
        half = part["std"] / np.sqrt(part["n"]) * part["n"].map(lambda n: quantile(n - 1) if n > 1 else math.nan)
        part["low"], part["high"] = part["mean"] - half, part["mean"] + half
        part["mark"] = [marks[setting].get((label, name), "") for setting, label in part.index]
        part[list(states.columns)] = states.reindex(part.index)
        part["absent"] = (part["of"] - cells["seed"].nunique()).clip(lower=0)
        parts.append(part)
    table = pd.concat(parts).reset_index()
    rank = {
        "setting": {setting: i for i, setting in enumerate(planned.index)},
        "label": {label: i for i, label in enumerate(labels(runs))},
        "metric": {name: i for i, name in enumerate(names)},
    }
    order = table[list(rank)].apply(lambda column: column.map(rank[column.name]))
    place = order.sort_values(list(rank)).index
    return pd.DataFrame(table.loc[place]).reset_index(drop=True)


def _marks(group: pd.DataFrame, seeds: int, contests: Sequence[Comparison]) -> dict[tuple[str, str], Mark]:
    """{(label, metric): mark} for the runs of one setting with `seeds` seeds."""
    own = group[~group["reference"].astype(bool)]
    wide = own.set_index(["label", "seed"])[list(RANKED)].unstack("seed")
    names = [str(label) for label in wide.index]
    shape = (len(wide), len(RANKED), -1)
    values = wide.to_numpy(dtype=float).reshape(shape) if len(wide) else np.empty((0, len(RANKED), 0))
    marks: dict[tuple[str, str], Mark] = {}
    if values.shape[2] < seeds:
        return marks
    told = {frozenset((pair.first, pair.second)): pair.verdict != "not told apart" for pair in contests}
    for i, name in enumerate(RANKED):
        complete = np.flatnonzero(np.isfinite(values[:, i]).all(axis=1))
        if not len(complete):
            continue
        means = values[complete, i].mean(axis=1)
        top = complete[means.argmax()]
        same = means.max() - means < 1e-12
        marks |= {(names[row], name): "best" for row in complete[same]}
        rest = complete[~same]
        if not len(rest):
            continue
        tied = np.zeros(len(rest), dtype=bool)  # one seed alone tells nothing
        if seeds > 1:
            tied = holm(seeds_p(values[top, i] - values[rest, i])) >= LEVEL
        if name == "mean_accuracy":
            pairs = [told.get(frozenset((names[top], names[row]))) for row in rest]
            tied = np.array([old if apart is None else not apart for apart, old in zip(pairs, tied, strict=True)])
        marks |= {(names[row], name): "tied" for row in rest[tied]}
    return marks


def average_ranks(table: pd.DataFrame, names: Sequence[str] = MAIN) -> tuple[pd.DataFrame, int]:
    """(average rank by label and metric of `names`, number of settings it is over); 1 is best, equal means share a rank.

    table: from `summary`. Contestants are methods with a complete cell somewhere that are no references; a setting
    counts where all of them have complete cells in all of `names`.
    """
    own = table[~table["reference"].astype(bool) & table["metric"].isin(names)]
    value = own["mean"].where((own["n"] == own["of"]) & own["mean"].notna())
    wide = own.assign(value=value).pivot(index="label", columns=["setting", "metric"], values="value")
    wide = wide.loc[[label for label in labels(table) if label in wide.index]].dropna(how="all")
    whole = wide.notna().all().groupby(level="setting", sort=False).all()
    settings = [setting for setting in whole.index[whole] if all((setting, name) in wide for name in names)]
    if len(wide) < 2 or not settings:
        return pd.DataFrame(index=wide.index, columns=list(names), dtype=float), 0
    found = {
        name: np.mean([rankdata(-wide[setting, name].round(12)) for setting in settings], axis=0) for name in names
    }
    return pd.DataFrame(found, index=wide.index), len(settings)


def labels(runs: pd.DataFrame) -> list[str]:
    """Every method's label, in order of appearance, references last."""
    seen = runs.drop_duplicates("label")
    last = seen["reference"].astype(bool)
    return [*seen.loc[~last, "label"], *seen.loc[last, "label"]]
