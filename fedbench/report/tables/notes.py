"""Notes below a table: reasons why rows cannot be compared, the meaning of the marks, and the runs behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fedbench.report.statistics import LEVEL
from fedbench.report.tables.metrics import REFERENCE, STATES, TIE
from fedbench.report.tables.summary import SEEDS_FOR_MARKS


def alarms(runs: pd.DataFrame) -> list[str]:
    """Sentences about reasons why rows cannot be compared; empty if there are none.

    Within a setting and seed all methods must share the partition and the cohorts; within a setting, the data, the
    backbone's weights and (save for references) the rounds. Two runs of one method under one seed, and finished runs
    without a usable last record, are also reported.
    """
    sentences = []
    for columns, what, rows in (
        (["setting", "seed"], "partition_hash", runs),
        (["setting", "seed", "rounds"], "cohort_hash", runs),
        (["setting"], "data_hash", runs),
        (["setting"], "backbone_hash", runs),
        (["setting"], "rounds", runs[~runs["reference"].astype(bool)]),
    ):
        for place, group in rows.dropna(subset=[what]).groupby(columns, sort=False):
            if group[what].nunique() < 2:
                continue
            where = ", seed ".join(str(part) for part in place[:2])
            sides = "; ".join(
                f"{_text(value)}: {_some(list(side['label'].unique()))}"
                for value, side in group.groupby(what, sort=False)
            )
            problem = {
                "partition_hash": "methods were run on different partitions",
                "cohort_hash": "methods trained other cohorts of clients",
                "data_hash": "methods were run on different data",
                "backbone_hash": "methods were run on different backbone weights",
                "rounds": "methods had different budgets (rounds)",
            }[what]
            sentences.append(f"{where}: {problem}, so their numbers cannot be compared ({sides}).")
    twice = runs[runs.duplicated(["setting", "label", "seed"], keep=False)]
    for (setting, label, seed), group in twice.groupby(["setting", "label", "seed"], sort=False):
        sentences.append(
            f"{setting}: {label} has {len(group)} runs with seed {seed}, of which only the first counts: "
            f"{', '.join(group['run'])}."
        )
    broken = runs[(runs["state"] == "failed") & runs["said"].astype(str).str.startswith("marked as done")]
    sentences += [f"{row.run} is {row.said}; it counts as failed." for row in broken.itertuples()]
    return sentences + code_changes(runs)


def code_changes(runs: pd.DataFrame) -> list[str]:
    """Sentences on code that changed between the runs of a table.

    ``code`` is <core>-<plug-ins> and shows uncommitted changes too. Where it is missing, commits are used.
    """
    sentences = []
    commits = sorted({str(commit) for commit in runs["commit"].dropna()})
    parts = runs["code"].dropna().astype(str).str.split("-", expand=True).reindex(columns=[0, 1])
    if len(commits) > 1 or parts[0].nunique() > 1:
        by = f"{parts[0].nunique()} versions" if parts[0].nunique() > 1 else f"{len(commits)} commits"
        sentences.append(f"Runs were made by {by} of the code: {', '.join(commits) or 'commits unknown'}.")
    if "codes" in runs:
        mixed = runs.loc[runs["codes"] > 1, "run"]
        sentences += [f"{run}: the code changed while it ran, so its records mix versions." for run in mixed]
    # Within a setting, since settings may use different dataset and partitioner plug-ins.
    versions = parts[1].groupby([runs["label"], runs["setting"]], sort=False).nunique()
    changed = versions[versions > 1].index.get_level_values("label").unique()
    return sentences + [f"{label}: its plug-ins changed between its runs." for label in changed]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def footer(runs: pd.DataFrame, warnings: Sequence[str]) -> list[str]:
    """Lines about the runs behind the tables: their states, seeds, commits, rounds, and the check of partitions.

    warnings: the `alarms` of the same runs.
    """
    states = runs["state"].value_counts()
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if state in states.index)
    commits = sorted({str(commit) for commit in runs["commit"].dropna()})
    seeds = sorted(set(runs["seed"]))
    rounds = sorted({int(value) for value in runs["rounds"].dropna()})
    clash = any("different partitions" in alarm for alarm in warnings)
    known = runs.dropna(subset=["partition_hash"])
    pairs = len(known.drop_duplicates(["setting", "seed"]))
    return [
        f"Runs: {len(runs)} ({counts})",
        f"Seeds: {', '.join(str(seed) for seed in seeds)}",
        f"Rounds: {', '.join(map(str, rounds)) or 'unknown'}",
        f"Code: {', '.join(commits) or 'unknown'}{'; CHANGED between runs, see the warnings' if code_changes(runs) else ''}",
        f"Partition hashes: {'DIFFERENT within a setting and seed, see the warnings' if clash else 'equal'}"
        f" ({pairs} pairs of setting and seed checked)",
    ]


def legend(table: pd.DataFrame, spread: str = "std") -> list[str]:
    """The meaning of the marks that occur in `summary`'s `table`."""
    seeds = sorted(set(table["of"]))
    what = f"[{1 - LEVEL:.0%} interval by Student's t]" if spread == "interval" else "± sample standard deviation"
    reads = [f"Accuracy in percent, mean {what} over seeds, after the last round."]
    if max(seeds, default=0) < SEEDS_FOR_MARKS:
        reads.append(f"No cell is marked as best: marks need {SEEDS_FOR_MARKS} seeds.")
    else:
        rule = (
            "Bold: largest mean among contestants with all seeds done. "
            f"{TIE}: our test cannot distinguish it from the best (seeds as blocks, Tukey's test over all contestants, "
            f"{LEVEL:.0%} family-wise level); it may still be worse."
        )
        if min(seeds) < SEEDS_FOR_MARKS:
            rule += f" Settings with fewer than {SEEDS_FOR_MARKS} seeds have no marks."
        reads.append(rule)
    shown = [state for state in STATES if state != "done" and table[state].any()]
    if shown:
        reads.append("(n/m): only n of the setting's m seeds are done; letters give the states of the others.")
    reads += [f"{STATES[state][0]}, {state}: {STATES[state][1]}." for state in shown]
    if table["reference"].astype(bool).any():
        reads.append(f"{REFERENCE}: a reference, not a contestant.")
    return reads


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(texts: Mapping[str, str]) -> list[str]:
    """A line that explains the short names of settings; {short name: full text}."""
    longer = [f"{short} is {full}" for short, full in texts.items() if short != full]
    return [f"Settings: {'; '.join(longer)}."] if longer else []


def tuning_lines(runs: pd.DataFrame) -> list[str]:
    """A line about how searched values were chosen; empty without a tuning."""
    tunings = _tunings(runs)
    if not tunings:
        return []
    budgets = sorted({tuning["budget_rounds"] for _, tuning in tunings if "budget_rounds" in tuning})
    spent = f", {' or '.join(map(str, budgets))} rounds for each method in each setting" if budgets else ""
    if any(tuning.get("per_seed") for _, tuning in tunings):
        where = "for each seed separately, so the spread over seeds includes that of the search"
    else:
        seeds = max(int(tuning.get("tuned_seeds", 1)) for _, tuning in tunings)
        on = f"on {seeds} seeds" if seeds > 1 else "on the first seed"
        where = f"{on} and used for all, so the spread over seeds does not include that of the search"
    kept = {(row.setting, row.label) for row, tuning in tunings if tuning.get("default_kept")}
    names = ", ".join(dict.fromkeys(label for _, label in sorted(kept)))
    unsure = f"; values of the sweep file kept, as no trial beat them by more than its standard error: {names}"
    return [f"Tuning: values were chosen by validation accuracy {where}{spent}{unsure if kept else ''}"]


def published_lines(runs: pd.DataFrame, published: Mapping[str, str]) -> list[str]:
    """A line for each file of published runs in the tables; `published` is {run: its file}."""
    rows = runs[runs["run"].isin(list(published))]
    lines = []
    for file, part in rows.groupby(rows["run"].map(published), sort=True):
        counts = [
            f"{label} ({len(of_label)} of {(runs['label'] == label).sum()})"
            for label, of_label in part.groupby("label", sort=False)
        ]
        lines.append(f"Published runs, not done here, from {file} (runs of each method): {', '.join(counts)}")
    return lines


def tuning_alarms(runs: pd.DataFrame) -> list[str]:
    """A sentence for each chosen value that lies at the edge of its range."""
    lines: dict[str, None] = {}
    for row, tuning in _tunings(runs):
        for path in tuning.get("edges") or ():
            widened = "widened " if path in (tuning.get("widened") or ()) else ""
            value = (tuning.get("values") or {}).get(path)
            lines[f"{row.setting}: {row.label} was tuned to {path} = {value}, at the edge of its {widened}range."] = (
                None
            )
    return list(lines)


def _tunings(runs: pd.DataFrame) -> list[tuple[Any, dict[str, Any]]]:
    """(row, facts about the search in its run.yaml) of every run with chosen values."""
    if "tuning" not in runs:
        return []
    return [(row, tuning) for row in runs.itertuples() if (tuning := json.loads(str(row.tuning)))]
