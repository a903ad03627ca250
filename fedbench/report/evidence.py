"""Reads a results folder into data frames: a row per run, per evaluated round, per client, and per trial of a tuning."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedbench.base import fork_pool
from fedbench.base.naming import key, made_distinct, natural, together, words
from fedbench.base.record_schema import INFERENCE
from fedbench.base.records import RecordsError
from fedbench.plan.identity import with_later_keys
from fedbench.report.record_reader import CLIENT_COLUMNS, Clients, read_clients, read_records
from fedbench.report.selection import Planned, ReportError, Selection, select
from fedbench.report.short_names import short_settings
from fedbench.report.tables.metrics import PROVENANCE, metric_names
from fedbench.report.tables.summary import with_last_round

NAMED = ("dataset", "partition", "aggregation", "backbone")  # blocks that a record names
SETTING = ("dataset", "partition", "backbone", "clients")  # keys that compared methods must share


@dataclass(frozen=True)
class Evidence:
    """The data of a report.

    runs: a row per run (`tables.metrics.COLUMNS`, the metrics, and config, JSON without the seed); records: a row per
    evaluated round, with setting, label, seed, state, reference; clients: a row per client of each finished run (setting,
    label, seed, client, held_out, accuracy); trials: a row per trial of a tuning (setting, label, values as JSON,
    number, kind, validation, state, chosen, rounds, total_multiply_adds); settings: {short name: full text}; notes: a
    sentence for each file that could not be used; pictures: {label: (caption, {panel: matrix})}; published: {run: file
    that it was taken from} of runs that were not done here.
    """

    runs: pd.DataFrame
    records: pd.DataFrame
    clients: pd.DataFrame
    trials: pd.DataFrame
    title: str
    results: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    pictures: Mapping[str, tuple[str, dict[str, NDArray[np.float64]]]] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)


def gather(
    sweeps: Sequence[Path], results: Path, plugins: Sequence[Path] = (), settings: Sequence[str] = ()
) -> Evidence:
    """The runs of `sweeps` below `results`, with records, clients and trials. Without sweeps, every run in the folder.

    Raises ReportError if there is nothing to report or a sweep file has a mistake. A run whose files cannot be read is
    left out, and a note says so.
    """
    return gather_selected(select(sweeps, results, plugins, settings), sweeps, results)


def gather_selected(selection: Selection, sweeps: Sequence[Path], results: Path) -> Evidence:
    """As `gather`, for runs that are already selected."""
    reading = fork_pool.start_in_fork(_read_clients, {run.folder.path.name: run.folder.path for run in selection.runs})
    records, unreadable = _read_records(selection.runs)
    planned = [run for run in selection.runs if run.folder.path.name not in unreadable]
    notes = [*selection.notes, *unreadable.values()]
    if not planned:
        raise ReportError(" ".join(notes))
    described = _describe(planned, records)
    is_trial = described["trial_of"] != ""
    if is_trial.all():
        raise ReportError("there are only trials of a tuning; start the same sweep again to run the chosen values")
    runs = described[~is_trial].drop(columns="trial_of").reset_index(drop=True)
    chosen = {str(tuning["trial"]) for tuning in runs["tuning"] if "trial" in tuning}
    runs = with_last_round(runs.assign(tuning=runs["tuning"].map(key)), records)
    trials = _trials(described[is_trial], records, chosen)
    if not records.empty:
        records = records.drop(columns="reference").merge(
            runs[["run", "setting", "label", "seed", "reference", "state"]], on="run", validate="many_to_one"
        )
    clients, damaged = reading()
    inference = {run: table[INFERENCE][0] for run, table in clients.items()}
    runs[INFERENCE] = runs["run"].map(inference).where(runs["state"] == "done").astype(float)
    title = ", ".join(dict.fromkeys(path.stem for path in sweeps)) or f"all runs in {results.name}"
    settings = dict(zip(described["setting"], described["setting_text"], strict=True))
    labels = dict(zip(runs["run"], runs["label"], strict=True))
    pictures = {labels[run]: picture for run, picture in selection.pictures.items() if run in labels}
    return Evidence(
        runs=runs,
        records=records,
        clients=_clients(clients, runs),
        trials=trials,
        title=title,
        results=results,
        settings=settings,
        notes=[*notes, *damaged],
        pictures=pictures,
    )


def _read_records(planned: Sequence[Planned]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row per evaluated round with the columns that reports use, and {run: note} for runs whose records are unusable."""
    rows, unreadable = [], {}
    for run in planned:
        try:
            rows += [record | {"run": run.folder.path.name} for record in read_records(run.folder)]
        except RecordsError as error:
            unreadable[run.folder.path.name] = f"{error}; the run is left out."
    names = metric_names({name for record in rows for name in record})
    columns = ["run", "round", "rounds", *NAMED, "reference", *PROVENANCE, *names]
    # by columns, which takes a third of the time of building it by rows
    return pd.DataFrame({name: [record.get(name) for record in rows] for name in columns}), unreadable


def _describe(planned: Sequence[Planned], records: pd.DataFrame) -> pd.DataFrame:
    """A row per run: its state, and names that differ between different settings and methods."""
    first: dict[str, dict[str, Any]] = {}
    if not records.empty:
        columns = ["run", *NAMED, "reference"]
        rows = records.drop_duplicates("run")[columns].to_dict("records")
        first = {row["run"]: {str(name): value for name, value in row.items()} for row in rows}
    block_names, references = _shared_names(planned, first)
    described: list[dict[str, Any]] = []
    for run in planned:
        named = {
            name: block_names.get((name, key(run.config.get(name))))
            or run.names.get(name)
            or words(run.config.get(name))
            for name in NAMED
        }
        described.append(
            {
                "run": run.folder.path.name,
                **named,
                "method": _method(run),
                "label": " ".join(run.label.split()),
                "reference": _method(run) in references,
                "seed": run.seed,
                **_state(run),
                "rounds": run.config.get("rounds"),
                "config": key(run.config),
                "tuned": key(sorted(map(str, _mapping(run.tuning.get("values"))))),
                "trial_of": str(run.tuning.get("trial_of", "")),
                "tuning": dict(run.tuning),
            }
        )
    frame = pd.DataFrame(described)
    frame["rounds"] = pd.to_numeric(frame["rounds"], errors="coerce").astype(float)
    _name_settings_and_labels(frame, planned)
    return frame if any(run.names for run in planned) else natural(frame)


def _shared_names(
    planned: Sequence[Planned], first: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[tuple[str, str], str], set[str]]:
    """The names of blocks in records, so that runs without records get the same names; and the reference methods."""
    names: dict[tuple[str, str], str] = {}
    references: set[str] = set()
    for run in planned:
        record = first.get(run.folder.path.name, {})
        for name in NAMED:
            if isinstance(record.get(name), str):
                names.setdefault((name, key(run.config.get(name))), record[name])
        if run.reference if run.reference is not None else record.get("reference") is True:
            references.add(_method(run))
    return names, references


def _state(run: Planned) -> dict[str, str]:
    """The run's state, and its last message."""
    state: str = run.folder.status
    failure = run.folder.failure() if state == "failed" else {}
    progress = run.folder.progress() if state == "running" else {}
    said = " ".join(str(failure.get("reason", "")).split())
    if "round" in progress:
        said = f"round {progress['round']} of {progress.get('rounds', '?')}"
    return {"state": "diverged" if failure.get("kind") == "diverged" else state, "said": said}


def _name_settings_and_labels(frame: pd.DataFrame, planned: Sequence[Planned]) -> None:
    """Add "setting_text", "setting" (its short name), and make labels differ where configs do."""
    several = frame["backbone"].nunique() > 1
    texts = together(frame, ["dataset", "partition", *(["backbone"] if several else [])])
    whole = [with_later_keys(run.config) for run in planned]
    configs = [{name: config.get(name) for name in SETTING} for config in whole]
    frame["setting_text"] = made_distinct(texts, configs, [""] * len(frame), " · ")
    short = short_settings(list(dict.fromkeys(frame["setting_text"])))
    frame["setting"] = frame["setting_text"].map(short)
    methods = [{name: value for name, value in config.items() if name not in SETTING} for config in whole]
    # trials of a method try different values and keep its name
    differing = [{} if run.tuning.get("trial_of") else config for run, config in zip(planned, methods, strict=True)]
    places = [f"{setting} {trial}" for setting, trial in zip(frame["setting"], frame["trial_of"], strict=True)]
    frame["label"] = made_distinct(frame["label"], differing, places, " ")


def _method(run: Planned) -> str:
    block = run.config.get("method")
    return str(block.get("name", "")) if isinstance(block, dict) else str(block or "")


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _read_clients(folders: Mapping[str, Path]) -> tuple[dict[str, Clients], list[str]]:
    """{run: its clients' columns} of runs that have them, and notes on files that cannot be used."""
    tables, notes = {}, []
    for run, folder in folders.items():
        try:
            table = read_clients(folder)
        except RecordsError as error:
            notes.append(f"{error}; the run's clients are left out.")
            continue
        if table is not None:
            tables[run] = table
    return tables, notes


def _clients(tables: Mapping[str, Clients], runs: pd.DataFrame) -> pd.DataFrame:
    """A row per client of each run that is done."""
    parts = {name: [table[name] for table in tables.values()] for name in CLIENT_COLUMNS}
    frame = pd.DataFrame(
        {name: np.concatenate(values) for name, values in parts.items()} if tables else {}, columns=list(CLIENT_COLUMNS)
    )
    frame["run"] = np.repeat(list(tables), [len(table["client"]) for table in tables.values()]) if tables else ""
    done = runs.loc[runs["state"] == "done", ["run", "setting", "label", "seed"]]
    frame = frame.merge(done, on="run")  # in the order of `frame`
    return frame.astype({"held_out": bool, "accuracy": float})


def _trials(described: pd.DataFrame, records: pd.DataFrame, chosen: Collection[str]) -> pd.DataFrame:
    """A row per trial; its column `chosen` marks the runs named in `chosen`."""
    trials = described.assign(label=described["trial_of"])
    tuning = [_mapping(value) for value in described["tuning"]]
    trials["values"] = [key(_mapping(entry.get("values"))) for entry in tuning]
    trials["number"] = [entry.get("number", place) for place, entry in enumerate(tuning)]
    trials["kind"] = [str(entry.get("kind", "search")) for entry in tuning]
    columns = ["val_mean_accuracy", "total_multiply_adds"]
    if records.empty:
        last = pd.DataFrame(columns=["run", *columns])
    else:
        newest = records.sort_values(["run", "round"], kind="stable").drop_duplicates("run", keep="last")
        last = newest.reindex(columns=["run", *columns])
    trials = trials.merge(last, on="run", how="left").rename(columns={"val_mean_accuracy": "validation"})
    trials["validation"] = pd.to_numeric(trials["validation"]).astype(float).where(trials["state"] == "done")
    trials["chosen"] = trials["run"].isin(list(chosen))
    kept = ["run", "setting", "label", "seed", "number", "kind", "values", "state", "validation", "chosen", "rounds"]
    return trials[[*kept, "total_multiply_adds"]]
