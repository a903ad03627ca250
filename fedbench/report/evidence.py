"""From a results folder to data frames: a row per run, per evaluated round, per client, and per trial of a tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import ArrowInvalid, parquet

from fedbench.base import fork_pool
from fedbench.base.naming import key, natural, together, told_apart, words
from fedbench.report.selection import Planned, ReportError, asked_for
from fedbench.report.tables.metrics import METRIC, PROVENANCE
from fedbench.report.tables.summary import with_last_round

NAMED = ("dataset", "partition", "aggregation", "backbone")  # blocks that a record names in words
SETTING = ("dataset", "partition", "backbone", "clients")  # what methods must share to be compared


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from.

    runs: a row per run (`tables.metrics.COLUMNS`, the metrics, and config, JSON without the seed); records: a row per
    evaluated round, with setting, label, state, reference; clients: a row per client of each finished run (setting,
    label, seed, client, held_out, accuracy); trials: a row per trial of a tuning (setting, label, values as JSON,
    validation, state, chosen, total_multiply_adds).
    """

    runs: pd.DataFrame
    records: pd.DataFrame
    clients: pd.DataFrame
    trials: pd.DataFrame
    title: str
    results: Path


def gather(
    sweeps: Sequence[Path], results: Path, plugins: Sequence[Path] = (), settings: Sequence[str] = ()
) -> Evidence:
    """The runs of `sweeps` below `results`, or without sweeps every run there, with records, clients and trials.

    Raises ReportError (nothing to report, a mistake in a sweep file) or RecordsError (a broken run.yaml).
    """
    return gathered(asked_for(sweeps, results, plugins, settings), sweeps, results)


def gathered(planned: Sequence[Planned], sweeps: Sequence[Path], results: Path) -> Evidence:
    """The same of runs that are `asked_for` already."""
    accuracies = fork_pool.beside(_accuracies, {run.folder.path.name: run.folder.path for run in planned})
    records = _records(planned)
    everything = _describe(planned, records)
    trial = everything["trial_of"] != ""
    if trial.all():
        raise ReportError("there are trials of a tuning only; start the same sweep again to run what they chose")
    own = everything[~trial].drop(columns=["trial_of", "trial_values"]).reset_index(drop=True)
    runs = with_last_round(own, records)
    trials = _trials(everything[trial], records)
    if not records.empty:
        records = records.drop(columns="reference").merge(
            runs[["run", "setting", "label", "reference", "state"]], on="run", validate="many_to_one"
        )
    title = ", ".join(dict.fromkeys(path.stem for path in sweeps)) or f"all runs in {results.name}"
    return Evidence(runs, records, _clients(accuracies(), runs), trials, title, results)


def _records(planned: Sequence[Planned]) -> pd.DataFrame:
    """A row per evaluated round with what reports read; built by columns, a third of the time of building it by rows."""
    found = [record for run in planned for record in run.folder.records()]
    columns = ["run", "round", "rounds", *NAMED, "reference", *PROVENANCE, *METRIC]
    return pd.DataFrame({name: [record.get(name) for record in found] for name in columns})


def _describe(planned: Sequence[Planned], records: pd.DataFrame) -> pd.DataFrame:
    """One row per run: what it is, in words that tell different settings and methods apart, and its state."""
    told: dict[str, dict[str, Any]] = {}
    if not records.empty:
        columns = ["run", *(name for name in (*NAMED, "reference") if name in records)]
        first = records.drop_duplicates("run")[columns]
        told = {row["run"]: {str(key): value for key, value in row.items()} for row in first.to_dict("records")}
    # what records call a block, so that a run without records is called the same
    called: dict[tuple[str, str], str] = {}
    references: set[str] = set()
    for run in planned:
        record = told.get(run.folder.path.name, {})
        for name in NAMED:
            if isinstance(record.get(name), str):
                called.setdefault((name, key(run.config.get(name))), record[name])
        if run.reference or record.get("reference") is True:
            references.add(_method(run))
    rows = []
    for run in planned:
        state: str = run.folder.status
        failure = run.folder.failure() if state == "failed" else {}
        progress = run.folder.progress() if state == "running" else {}
        said = " ".join(str(failure.get("reason", "")).split())
        if "round" in progress:
            said = f"round {progress['round']} of {progress.get('rounds', '?')}"
        named = {
            name: called.get((name, key(run.config.get(name)))) or run.names.get(name) or words(run.config.get(name))
            for name in NAMED
        }
        rows.append(
            {
                "run": run.folder.path.name,
                **named,
                "method": _method(run),
                "label": " ".join(run.label.split()),
                "reference": _method(run) in references,
                "seed": run.seed,
                "state": "diverged" if failure.get("kind") == "diverged" else state,
                "said": said,
                "rounds": run.config.get("rounds"),
                "config": key(run.config),
                "tuned": key(sorted(run.tuning.get("values", {}))),
                "trial_of": str(run.tuning.get("trial_of", "")),
                "trial_values": key(run.tuning.get("values", {})),
            }
        )
    frame = pd.DataFrame(rows)
    frame["rounds"] = pd.to_numeric(frame["rounds"]).astype(float)
    several = frame["backbone"].nunique() > 1
    parts = ["dataset", "partition", *(["backbone"] if several else [])]
    frame["setting"] = together(frame, parts)
    configs = [{name: run.config.get(name) for name in SETTING} for run in planned]
    frame["setting"] = told_apart(frame["setting"], configs, [""] * len(frame), " · ")
    own = [{name: value for name, value in run.config.items() if name not in SETTING} for run in planned]
    # trials of a method differ in what they try, and keep its name
    kept = [{} if run.tuning.get("trial_of") else one for run, one in zip(planned, own, strict=True)]
    places = [f"{setting} {trial}" for setting, trial in zip(frame["setting"], frame["trial_of"], strict=True)]
    frame["label"] = told_apart(frame["label"], kept, places, " ")
    return frame if any(run.names for run in planned) else natural(frame)


def _method(run: Planned) -> str:
    block = run.config.get("method")
    return str(block.get("name", "")) if isinstance(block, dict) else str(block or "")


def _accuracies(folders: Mapping[str, Path]) -> tuple[dict[str, int], dict[str, Any]]:
    """Of each run that has a readable clients.parquet, how many clients it tells of; and the columns of all, end to end."""
    parts: dict[str, list[Any]] = {"client": [], "held_out": [], "accuracy": []}
    sizes = {}
    for run, folder in folders.items():
        try:
            table = parquet.ParquetFile(folder / "clients.parquet").read(list(parts), use_threads=False)
        except (
            OSError,
            ValueError,
            KeyError,
            ArrowInvalid,
        ):  # absent, or not what it should be: figures say what they show
            continue
        for name, values in parts.items():
            values.append(table.column(name).to_numpy())
        sizes[run] = table.num_rows
    return sizes, {name: np.concatenate(values) for name, values in parts.items()} if sizes else {}


def _clients(found: tuple[dict[str, int], dict[str, Any]], runs: pd.DataFrame) -> pd.DataFrame:
    """A row per client of each run that is done, from `_accuracies`."""
    sizes, columns = found
    frame = pd.DataFrame(columns, columns=["client", "held_out", "accuracy"])
    frame["run"] = np.repeat(list(sizes), list(sizes.values())) if sizes else ""
    done = runs.loc[runs["state"] == "done", ["run", "setting", "label", "seed"]]
    frame = frame.merge(done, on="run")  # in the order of `frame`
    return frame.astype({"held_out": bool, "accuracy": float})


def _trials(described: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """A row per trial; `chosen` marks the best of each method and setting, once all of its trials have ended."""
    values = described.assign(label=described["trial_of"]).rename(columns={"trial_values": "values"})
    found = ["val_mean_accuracy", "total_multiply_adds"]
    if records.empty:
        last = pd.DataFrame(columns=["run", *found])
    else:
        newest = records.sort_values(["run", "round"], kind="stable").drop_duplicates("run", keep="last")
        last = newest.reindex(columns=["run", *found])
    values = values.merge(last, on="run", how="left").rename(columns={"val_mean_accuracy": "validation"})
    values["validation"] = pd.to_numeric(values["validation"]).astype(float).where(values["state"] == "done")
    values["chosen"] = False
    for _, group in values.groupby(["setting", "label"], sort=False):
        if group["state"].isin(["done", "diverged"]).all() and group["validation"].notna().any():
            finalists = group[group["rounds"] == group["rounds"].max()]  # shorter trials only lead to these
            if finalists["validation"].notna().any():
                values.loc[finalists["validation"].idxmax(), "chosen"] = True
    columns = ["run", "setting", "label", "values", "state", "validation", "chosen", "rounds", "total_multiply_adds"]
    return values[columns]
