"""From a results folder to data frames: a row per run, per evaluated round, per client, and per trial of a tuning.

Without sweep files nothing here imports torch; reading a sweep file loads the plug-ins, which do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pyarrow import ArrowInvalid, parquet

from fedbench.home import sweep_file
from fedbench.naming import key, natural, together, told_apart, words
from fedbench.records import RecordsError, RunFolder, run_folders
from fedbench.tables.metrics import METRIC, PROVENANCE
from fedbench.tables.summary import with_last_round

# libyaml where there is one: it reads ten thousand configs in seconds instead of a minute
Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

NAMED = ("dataset", "partition", "aggregation", "backbone")  # blocks that a record names in words
SETTING = ("dataset", "partition", "backbone", "clients")  # what methods must share to be compared


class ReportError(ValueError):
    """A report that cannot be made: says what was expected and what was found."""


@dataclass(frozen=True)
class Planned:
    """A run of the report before its records are read: its folder, and what it is by its config."""

    folder: RunFolder
    label: str
    config: dict[str, Any]  # what changes its numbers, without the seed
    seed: int
    names: dict[str, str]  # block -> words, where the sweep file told them
    reference: bool = False
    tuning: dict[str, Any] = field(default_factory=dict)  # which trial it is, or how its values were chosen


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
    if not sweeps and not results.is_dir():
        raise ReportError(_no_results(results))
    planned = list(_from_sweeps(sweeps, results, plugins, settings) if sweeps else _from_disk(results))
    if not planned:
        raise ReportError(_no_results(results) if not sweeps else f"no runs in {', '.join(map(str, sweeps))}")
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
    folders = {run.folder.path.name: run.folder.path for run in planned}
    return Evidence(runs, records, _clients(folders, runs), trials, title, results)


def _records(planned: Sequence[Planned]) -> pd.DataFrame:
    """A row per evaluated round with what reports read; built by columns, a third of the time of building it by rows."""
    found = [record for run in planned for record in run.folder.records()]
    columns = ["run", "round", "rounds", *NAMED, "reference", *PROVENANCE, *METRIC]
    return pd.DataFrame({name: [record.get(name) for record in found] for name in columns})


def _no_results(results: Path) -> str:
    what = "holds no runs" if results.is_dir() else "is a file" if results.exists() else "does not exist"
    near = (
        [path for path in results.parent.glob("*/") if next(run_folders(path), None)] if results.parent.is_dir() else []
    )
    hint = f"; folders beside it that hold runs: {', '.join(sorted(path.name for path in near))}" if near else ""
    return f"results folder {results} {what}{hint}. Runs are made by `python -m fedbench.sweep <file>`; see --results"


def _from_disk(results: Path) -> Iterator[Planned]:
    """Every run below `results`, by name. Configs that differ in the seed alone are parsed once."""
    parsed: dict[str, dict[str, Any]] = {}
    seed_line = re.compile(r"^  seed: (\d+)\n", re.MULTILINE)  # of the identity and of the run, both two deep
    for folder in run_folders(results):
        path = folder.path / "run.yaml"
        text = path.read_text()
        seeds = set(seed_line.findall(text))
        text = seed_line.sub("", text) if len(seeds) == 1 else text
        if text not in parsed:
            try:
                parsed[text] = yaml.load(text, Loader=Loader)  # noqa: S506 - a safe loader either way
                identity = parsed[text]["identity"]
                _ = {**identity}
            except (yaml.YAMLError, TypeError, KeyError) as error:
                raise RecordsError(f"{path}: cannot be read as a run's config ({error!r})") from error
        config = parsed[text]
        identity = dict(config["identity"])
        inside = identity.pop("seed", 0)
        seed = int(next(iter(seeds))) if len(seeds) == 1 else int(inside)
        method = identity.get("method")
        label = config.get("label") or (method.get("name") if isinstance(method, dict) else None) or folder.path.name
        yield Planned(folder, str(label), identity, seed, {}, tuning=dict(config.get("tuning") or {}))


def _from_sweeps(
    sweeps: Sequence[Path], results: Path, plugins: Sequence[Path], settings: Sequence[str]
) -> Iterator[Planned]:
    """The runs of the sweep files in their order, each once; trials of a tuning, and what waits for them, as well."""
    from fedbench.config import ConfigError, PlannedRun, short_name  # loads the plug-ins, hence torch
    from fedbench.planning import read_sweep
    from fedbench.plugins import Plugins
    from fedbench.tuning import groups, staged

    def names(found: Plugins, run: dict[str, Any]) -> dict[str, str]:
        told = {
            kind: short_name(run[kind], found.classes[kind][run[kind]["name"]])
            for kind in ("dataset", "partition", "aggregation")
        }
        return told | {"backbone": str(run["backbone"]["name"])}

    seen: set[str] = set()
    for path in map(sweep_file, sweeps):
        if not path.is_file():
            near = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml"))) or "none"
            raise ReportError(f"sweep file {path} does not exist; sweep files beside it: {near}")
        try:
            sweep = read_sweep(path, plugins, settings)
            trials = [trial.planned for group in groups(sweep, results) for trial in group.trials]
            now = staged(sweep, results)
        except ConfigError as error:  # which speaks for plug-ins too, save for a folder that does not exist
            raise ReportError(str(error)) from error
        waiting = {run.key for run in now.later}
        todo: list[PlannedRun] = [*now.runs, *now.later, *trials]
        for planned in todo:
            if planned.key in seen:
                continue
            seen.add(planned.key)
            identity = json.loads(json.dumps(planned.identity, default=str))
            seed = identity.pop("seed")
            cls = sweep.plugins.classes["method"][planned.run.method["name"]]
            # a run with the file's own values may lie there from an untuned sweep: it is not the one that waits
            name = planned.name + "-waits-for-tuning" * (planned.key in waiting)
            yield Planned(
                RunFolder(results / name),
                planned.label,
                identity,
                seed,
                names(sweep.plugins, planned.run.model_dump()),
                bool(getattr(cls, "reference", False)),
                dict(planned.tuning),
            )


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


def _clients(folders: dict[str, Path], runs: pd.DataFrame) -> pd.DataFrame:
    """Clients of every finished run that has a readable clients.parquet."""
    parts: dict[str, list[Any]] = {"client": [], "held_out": [], "accuracy": []}
    sizes, owners = [], []
    done = runs.loc[runs["state"] == "done", ["run", "setting", "label", "seed"]]
    for row, run in zip(done.index, done["run"], strict=True):
        try:
            table = parquet.ParquetFile(folders[run] / "clients.parquet").read(list(parts), use_threads=False)
        except (
            OSError,
            ValueError,
            KeyError,
            ArrowInvalid,
        ):  # absent, or not what it should be: figures say what they show
            continue
        for name, values in parts.items():
            values.append(table.column(name).to_numpy())
        sizes.append(table.num_rows)
        owners.append(row)
    if not owners:
        return pd.DataFrame(columns=[*parts, "run", "setting", "label", "seed"])
    frame = pd.DataFrame({name: np.concatenate(values) for name, values in parts.items()})
    which = np.repeat(owners, sizes)
    for name in ("run", "setting", "label", "seed"):
        frame[name] = done[name].loc[which].to_numpy()
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
            values.loc[group["validation"].idxmax(), "chosen"] = True
    columns = ["run", "setting", "label", "values", "state", "validation", "chosen", "rounds", "total_multiply_adds"]
    return values[columns]
