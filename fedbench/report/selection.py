"""Which runs a report is about: those that sweep files ask for, or all that lie below a results folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedbench.base.home import sweep_file
from fedbench.base.records import LOADER, RecordsError, RunFolder, run_folders


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


def asked_for(sweeps: Sequence[Path], results: Path, plugins: Sequence[Path], settings: Sequence[str]) -> list[Planned]:
    """The runs of `sweeps` below `results`, or without sweeps every run there; at least one.

    Reading a sweep file loads the plug-ins, hence torch, which nothing else of a report needs: see `forks.beside`.
    Raises ReportError (nothing to report, a mistake in a sweep file) or RecordsError (a broken run.yaml).
    """
    if not sweeps and not results.is_dir():
        raise ReportError(_no_results(results))
    found = _from_sweeps(sweeps, results, plugins, settings) if sweeps else list(_from_disk(results))
    if not found:
        raise ReportError(f"no runs in {', '.join(map(str, sweeps))}" if sweeps else _no_results(results))
    return found


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
                parsed[text] = yaml.load(text, Loader=LOADER)  # noqa: S506 - a safe loader either way
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
) -> list[Planned]:
    """The runs of the sweep files in their order, each once; trials of a tuning, and what waits for them, as well."""
    from fedbench.plan.config import ConfigError, PlannedRun, short_name  # loads the plug-ins, hence torch
    from fedbench.plan.planning import read_sweep
    from fedbench.plan.plugins import PluginError, Plugins
    from fedbench.plan.tuning import next_stage, tuning_groups

    def names(found: Plugins, run: dict[str, Any]) -> dict[str, str]:
        told = {
            kind: short_name(run[kind], found.classes[kind][run[kind]["name"]])
            for kind in ("dataset", "partition", "aggregation")
        }
        return told | {"backbone": str(run["backbone"]["name"])}

    runs: list[Planned] = []
    seen: set[str] = set()
    for path in map(sweep_file, sweeps):
        if not path.is_file():
            near = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml"))) or "none"
            raise ReportError(f"sweep file {path} does not exist; sweep files beside it: {near}")
        try:
            sweep = read_sweep(path, plugins, settings)
            trials = [trial.planned for group in tuning_groups(sweep, results) for trial in group.trials]
            now = next_stage(sweep, results)
        except (ConfigError, PluginError) as error:
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
    return runs
