"""Selects the runs of a report: those of sweep files, or all runs below a results folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedbench.base import missing_config, naming
from fedbench.base.home import sweep_file
from fedbench.base.records import LOADER, RecordsError, RunFolder, run_folders
from fedbench.report.pictures import Pictures, pictures_of


class ReportError(ValueError):
    """A report cannot be made. The message gives the expected and the actual content."""


@dataclass(frozen=True)
class Planned:
    """A run of the report before its records are read: its folder and its config.

    config: its identity without the seed; names: the names of its blocks, if the sweep file gives them;
    reference: None if only its records say it; tuning: which trial it is, or how its values were chosen.
    """

    folder: RunFolder
    label: str
    config: dict[str, Any]
    seed: int
    names: dict[str, str]
    reference: bool | None = None
    tuning: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The runs of a report, the pictures of their methods, and a sentence for each folder that was left out."""

    runs: list[Planned]
    notes: list[str] = field(default_factory=list)
    pictures: Pictures = field(default_factory=dict)


def select(sweeps: Sequence[Path], results: Path, plugins: Sequence[Path], settings: Sequence[str]) -> Selection:
    """The runs of `sweeps` below `results`, at least one. Without sweeps, every run in the folder.

    Reading a sweep file loads the plug-ins and torch, which a report does not need otherwise: see `fork_pool.start_in_fork`.
    Raises ReportError if there is nothing to report or a sweep file has a mistake.
    """
    if not sweeps and not results.is_dir():
        raise ReportError(_no_results(results))
    selection = _from_sweeps(sweeps, results, plugins, settings) if sweeps else _from_disk(results)
    if not selection.runs:
        unreadable = " ".join(selection.notes)
        raise ReportError(f"no runs in {', '.join(map(str, sweeps))}" if sweeps else unreadable or _no_results(results))
    return selection


def _no_results(results: Path) -> str:
    what = "holds no runs" if results.is_dir() else "is a file" if results.exists() else "does not exist"
    near = []
    if results.parent.is_dir():
        near = sorted(path.name for path in results.parent.glob("*/") if next(run_folders(path), None))
    hint = f"; folders beside it that hold runs: {', '.join(near)}" if near else ""
    return f"results folder {results} {what}{hint}. Runs are made by `fedbench sweep FILE`; see --results"


SEED_LINE = re.compile(r"^  seed: (\d+)\n", re.MULTILINE)  # of the identity and of the run, both at the second level


def _from_disk(results: Path) -> Selection:
    """Every run below `results`, sorted by name. Configs that differ only in the seed are parsed once."""
    parsed: dict[str, dict[str, Any]] = {}
    runs, notes = [], []
    for folder in run_folders(results):
        path = folder.path / "run.yaml"
        try:
            text = path.read_text()
            seeds = set(SEED_LINE.findall(text))
            text = SEED_LINE.sub("", text) if len(seeds) == 1 else text
            if text not in parsed:
                parsed[text] = _checked(yaml.load(text, Loader=LOADER))  # noqa: S506 - a safe loader either way
            runs.append(_planned(folder, parsed[text], next(iter(seeds)) if len(seeds) == 1 else None))
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, RecursionError) as error:
            notes.append(f"{path} cannot be read as a run's config ({_short(error)}); the run is left out.")
    notes += [
        f"{missing_config.sentence(path)}; the run is left out."
        for path in missing_config.folders_without_config(results)
    ]
    return Selection(runs, notes)


def _checked(config: Any) -> dict[str, Any]:
    """`config`, checked to be the content of a run.yaml. Raises ValueError or TypeError if it is not."""
    identity = config.get("identity") if isinstance(config, dict) else None
    if not isinstance(identity, dict):
        raise ValueError("expected a mapping with `identity`")
    if not isinstance(config.get("tuning") or {}, dict):
        raise ValueError("expected a mapping under `tuning`")
    float(identity.get("rounds") or 0)
    naming.key(config)  # fails for a config that contains itself, or has keys that JSON lacks
    return dict(config)


def _planned(folder: RunFolder, config: Mapping[str, Any], seed: str | None) -> Planned:
    identity = dict(config["identity"])
    inside = identity.pop("seed", 0)
    method = identity.get("method")
    label = config.get("label") or (method.get("name") if isinstance(method, dict) else None) or folder.path.name
    return Planned(folder, str(label), identity, int(seed or inside), {}, tuning=dict(config.get("tuning") or {}))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _from_sweeps(sweeps: Sequence[Path], results: Path, plugins: Sequence[Path], settings: Sequence[str]) -> Selection:
    """The runs of the sweep files in order, each once, including trials of a tuning and runs that wait for them."""
    from fedbench.plan.config import ConfigError, PlannedRun, short_name  # loads torch
    from fedbench.plan.planning import read_sweep
    from fedbench.plan.plugins import PluginError, Plugins
    from fedbench.plan.tuning import next_stage, tuning_groups

    def names(loaded: Plugins, run: dict[str, Any]) -> dict[str, str]:
        words = {
            kind: short_name(run[kind], loaded.classes[kind][run[kind]["name"]])
            for kind in ("dataset", "partition", "aggregation")
        }
        return words | {"backbone": str(run["backbone"]["name"])}

    runs: list[Planned] = []
    notes: list[str] = []
    pictures: Pictures = {}
    keys: set[str] = set()
    for path in map(sweep_file, sweeps):
        if not path.is_file():
            near = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml"))) or "none"
            raise ReportError(f"sweep file {path} does not exist; sweep files beside it: {near}")
        try:
            sweep = read_sweep(path, plugins, settings)
            trials = [trial.planned for group in tuning_groups(sweep, results) for trial in group.trials]
            now = next_stage(sweep, results)
        except (ConfigError, PluginError, RecordsError) as error:
            raise ReportError(str(error)) from error
        waiting = {run.key for run in now.later}
        todo: list[PlannedRun] = [*now.runs, *now.later, *trials]
        if not pictures:
            pictures, failures = pictures_of(now.runs, sweep.plugins, results)
            notes += failures
        for planned in todo:
            if planned.key in keys:
                continue
            keys.add(planned.key)
            identity = json.loads(json.dumps(planned.identity, default=str))
            seed = identity.pop("seed")
            cls = sweep.plugins.classes["method"][planned.run.method["name"]]
            # the folder may hold a run with the file's values from an untuned sweep, which is not the waiting run
            name = planned.name + "-waits-for-tuning" * (planned.key in waiting)
            runs.append(
                Planned(
                    RunFolder(results / name),
                    planned.label,
                    identity,
                    seed,
                    names(sweep.plugins, planned.run.model_dump()),
                    bool(getattr(cls, "reference", False)),
                    dict(planned.tuning),
                )
            )
    folders = {run.folder.path for run in runs}
    notes += [
        f"{missing_config.sentence(path)}."
        for path in missing_config.folders_without_config(results)
        if path in folders
    ]
    return Selection(runs, notes, pictures)
