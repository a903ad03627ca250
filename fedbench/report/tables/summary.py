"""Computes cells from runs: the last round of each run, mean and spread over seeds, the best method and ties with it.

All functions are pure functions of a data frame with one row per run (see `metrics.COLUMNS`). The value of a run is
that of its last round, and only a run that is done has a value.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from fedbench.report.statistics import SAME, blocked_error, student_quantile
from fedbench.report.tables.metrics import PROVENANCE, RANKED, STATES, Mark, metric_names

SEEDS_FOR_MARKS = 3  # with fewer seeds, no cell is marked as best or tied


def with_last_round(plan: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """`plan` (one row per run: run, setting, label, ..., state, rounds) joined with each run's last record.

    The last record is that of the highest round, not the best one. Metrics of a run that is not done are dropped, but
    hashes stay. A run that is marked as done, but whose records end before its last round or hold no mean accuracy, becomes
    "failed", and column "said" gives the reason.
    """
    names = metric_names(records.columns)
    taken = ["round", *PROVENANCE, *names]
    if records.empty:
        last = pd.DataFrame(columns=["run", *taken])
    else:
        newest = records.sort_values(["run", "round"], kind="stable").drop_duplicates("run", keep="last")
        last = newest.reindex(columns=["run", *taken])
    runs = plan.merge(last, on="run", how="left", validate="many_to_one")
    for name in ("round", *names):
        runs[name] = pd.to_numeric(runs[name], errors="coerce").astype(float)  # what a plug-in wrote may be text
    if "code" in records:  # the number of versions of the code that made the run's records
        runs["codes"] = runs["run"].map(records.groupby("run")["code"].nunique())
    cut = (runs["state"] == "done") & ~(runs["round"] >= runs["rounds"])
    empty = (runs["state"] == "done") & ~cut & ~np.isfinite(runs["mean_accuracy"])
    runs.loc[cut, "said"] = "marked as done, but its records end before its last round"
    runs.loc[empty, "said"] = "marked as done, but its last record holds no mean accuracy"
    runs.loc[cut | empty, "state"] = "failed"
    runs.loc[runs["state"] != "done", names] = math.nan
    return runs


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, method and metric: n seeds with a value, `of` the seeds of the setting, mean, sample std.

    Shares are in [0, 1], bytes in bytes. std, and low and high of Student's 95 % interval of the mean, are NaN for one
    seed. `mark` is "best" for the largest mean among complete cells (n = of) of methods that are not references, "tied"
    for a complete cell that the test over seeds cannot distinguish from the best (`statistics.compare_all`); no cell is
    marked with fewer than SEEDS_FOR_MARKS seeds. The states' columns count runs; `absent` counts seeds without a planned
    run. Order: as in `runs`, references last.
    """
    runs = runs.drop_duplicates(["setting", "label", "seed"])  # `alarms` reports the others
    names = metric_names(runs.columns)
    cells = runs.groupby(["setting", "label"], sort=False)
    count, mean, std = cells[names].count(), cells[names].mean(), cells[names].std()
    states = runs.groupby(["setting", "label", "state"], sort=False).size().unstack("state", fill_value=0)
    states = states.reindex(columns=[state for state in STATES if state != "absent"], fill_value=0)
    planned = runs.groupby("setting", sort=False)["seed"].nunique()
    first = cells[["dataset", "partition", "backbone", "method", "reference"]].first()
    marks = {setting: _marks(group, int(planned[setting])) for setting, group in runs.groupby("setting", sort=False)}
    parts = []
    for name in names:
        part = first.copy()
        part["metric"] = name
        part["n"] = count[name]
        part["of"] = planned.reindex(part.index.get_level_values("setting")).to_numpy()
        part["mean"], part["std"] = mean[name], std[name]
        quantile = part["n"].map(lambda n: student_quantile(n - 1))  # nan for one run
        half = part["std"] / np.sqrt(part["n"]) * quantile
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


def _marks(group: pd.DataFrame, seeds: int) -> dict[tuple[str, str], Mark]:
    """{(label, metric): mark} for the runs of one setting with `seeds` seeds."""
    marks: dict[tuple[str, str], Mark] = {}
    contestants = group[~group["reference"].astype(bool)]
    if seeds < SEEDS_FOR_MARKS or contestants.empty:
        return marks
    for name in RANKED:
        wide = contestants.pivot(index="label", columns="seed", values=name).astype(float)
        wide = wide[wide.notna().all(axis=1)]
        if wide.empty or wide.shape[1] < seeds:
            continue
        values = wide.to_numpy()
        gap = values.mean(1).max() - values.mean(1)
        margin = blocked_error(values).margins()[gap.argmin()] if len(values) > 1 else np.zeros(1)
        for label, behind, least in zip(wide.index, gap, margin, strict=True):
            if behind < SAME:
                marks[str(label), name] = "best"
            elif behind <= least + SAME:
                marks[str(label), name] = "tied"
    return marks


def labels(runs: pd.DataFrame) -> list[str]:
    """Every method's label, in order of appearance, references last."""
    by_label = runs.drop_duplicates("label")
    last = by_label["reference"].astype(bool)
    return [*by_label.loc[~last, "label"], *by_label.loc[last, "label"]]
