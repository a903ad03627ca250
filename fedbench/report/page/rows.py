"""Rows of the page's smaller tables: tuning, published numbers, accuracy at equal budget, unfinished runs, provenance."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from fedbench.report.tables.grid import scaled
from fedbench.report.tables.metrics import STATES, metric_of

UNFINISHED = 200  # rows of the list of runs that are not done; runs.csv has them all

Rows = list[Mapping[str, Any]]


def tuning_budget(trials: pd.DataFrame) -> str:
    """The budget of the search, and its criterion."""
    if trials.empty:
        return ""
    repeated = trials["kind"] == "repeated"
    each = sorted(set(trials[~repeated].groupby(["setting", "label", "seed"]).size()))
    rounds = sorted({int(value) for value in trials["rounds"].dropna()})
    spent = pd.to_numeric(trials["total_multiply_adds"]).sum()
    seeds = trials[~repeated].groupby(["setting", "label"])["seed"].nunique().max()
    where = "for each seed separately" if seeds > 1 else "on the first seed"
    if repeated.any():
        where = f"on the first seed, and between the best of these on {1 + trials[repeated]['seed'].nunique()} seeds,"
    return (
        f"{len(trials)} trials, {' or '.join(map(str, each))} for each method in each setting on a seed, of "
        f"{' or '.join(map(str, rounds))} rounds, {scaled(float(spent)).strip()} multiply-adds in all. Values were chosen "
        f"{where} by mean validation accuracy over clients after the last round. Test data were evaluated only for the "
        "chosen values."
    )


def tuning(trials: pd.DataFrame) -> Rows:
    """A row per method and setting."""
    rows: Rows = []
    for (setting, label), of_label in trials.groupby(["setting", "label"], sort=False):
        best = of_label[of_label["chosen"]]
        decided = of_label[of_label["number"].isin(best["number"]) & (of_label["rounds"] == of_label["rounds"].max())]
        values = json.loads(best["values"].iloc[0]) if len(best) else {}
        ended = int(of_label["state"].isin(["done", "diverged"]).sum())
        spent = float(pd.to_numeric(of_label["total_multiply_adds"]).sum())
        rows.append(
            {
                "setting": setting,
                "label": label,
                "trials": len(of_label),
                "diverged": int((of_label["state"] == "diverged").sum()),
                "chosen": ", ".join(f"{k} = {v}" for k, v in values.items())
                or f"undecided: {ended} of {len(of_label)} ended",
                "validation": f"{100 * float(decided['validation'].mean()):.1f}" if len(best) else "",
                "cost": scaled(spent).strip(),
            }
        )
    return rows


def reported(frame: pd.DataFrame) -> Rows:
    """Published numbers whose method and setting a run of this report repeats."""
    return [
        {
            "source": f"{row.source}, {row.where}",
            "setting": row.setting,
            "method": f"{row.method} ({metric_of(str(row.metric)).title})",
            "reported": f"{row.reported:.2f}",
            "here": "–" if math.isnan(row.here) else f"{row.here:.1f}" + (f" ± {row.std:.1f}" if row.seeds > 1 else ""),  # type: ignore[operator,arg-type]
            "difference": "" if math.isnan(row.difference) else f"{row.difference:+.1f}",  # type: ignore[arg-type]
            "protocol": row.protocol or "none stated",
        }
        for row in frame[frame["label"] != ""].itertuples()
    ]


def budgets(frame: pd.DataFrame) -> Rows:
    """A row per setting and method: its accuracy at each budget and at the end. Best accuracy at the first budget first."""
    rows: Rows = []
    for setting, part in frame.groupby("setting", sort=False):
        by_cost = {str(cost): at_budget.set_index("label") for cost, at_budget in part.groupby("cost", sort=False)}
        labels = list(dict.fromkeys(part["label"]))
        first = next(iter(by_cost.values()))["accuracy"].to_dict()
        labels = sorted(labels, key=functools.partial(_worst_last, first))
        for label in labels:
            cells = {}
            for cost, at_budget in by_cost.items():
                value = float(at_budget["accuracy"].get(label, math.nan))
                unit = "B" if cost == "bytes" else ""
                budget = scaled(float(at_budget["budget"].iloc[0])).strip()
                text = f"{100 * value:.1f}" if math.isfinite(value) else "–"
                cells[cost] = (text, f"at {budget}{unit}")
            last = float(part.loc[part["label"] == label, "last"].iloc[0])
            rows.append({"setting": setting, "label": label, "cells": cells, "last": f"{100 * last:.1f}"})
    return rows


def _worst_last(accuracy: Mapping[Any, float], label: str) -> float:
    value = accuracy.get(label, math.nan)
    return -value if math.isfinite(value) else math.inf


def unfinished(runs: pd.DataFrame) -> dict[str, Any]:
    """What the page says of runs that are not done: `absent` in words, `unfinished` rows, and how many `more` there are."""
    rest = runs[runs["state"] != "done"]
    counts = rest["state"].value_counts()
    absent = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts.index)
    return {
        "absent": absent and f"of {len(runs)} runs {absent}",
        "unfinished": rest.head(UNFINISHED)[["run", "label", "setting", "seed", "state", "said"]].to_dict("records"),
        "more": max(0, len(rest) - UNFINISHED),
    }


def partition_hashes(runs: pd.DataFrame) -> list[tuple[Any, ...]]:
    """(setting, seed, hashes of its partition, whether they differ), for each setting and seed."""
    known = runs.dropna(subset=["partition_hash"])
    return [
        (*place, ", ".join(map(str, group["partition_hash"].unique())), group["partition_hash"].nunique() > 1)
        for place, group in known.groupby(["setting", "seed"], sort=False)
    ]


def weights(runs: pd.DataFrame) -> Rows:
    """A row for each backbone with its hash."""
    known = runs.dropna(subset=["backbone_hash"]).drop_duplicates(["backbone", "backbone_hash"])
    return [
        {str(name): value for name, value in row.items()}
        for row in known[["backbone", "backbone_hash"]].to_dict("records")
    ]
