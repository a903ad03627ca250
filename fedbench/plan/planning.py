"""From a sweep file to its runs: everything is checked, and all mistakes are reported at once."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.base.home import HOME, sweep_file
from fedbench.plan import schedule
from fedbench.plan.checker import Checker
from fedbench.plan.config import TRACKERS, Cluster, ConfigError, Machine, PlannedRun, RunConfig, Sweep, Tune
from fedbench.plan.content import forget
from fedbench.plan.exclusion import Exclusion
from fedbench.plan.expansion import LISTS, SECTIONS, apply_settings, checked_axes, expand, overridden, set_path
from fedbench.plan.mistakes import Mistakes, shown
from fedbench.plan.plugins import PLUGIN_KINDS, PluginError, Plugins, plugins
from fedbench.plan.search_space import check_range
from fedbench.plan.task_checks import Where, check_tasks
from fedbench.plan.unused import add_unused_momentum, add_unused_options
from fedbench.plan.yaml_reader import read_yaml


def planned_from_disk(config: Mapping[str, Any]) -> tuple[PlannedRun, Machine, Plugins]:
    """The inverse of `Sweep.on_disk`. Raises ConfigError or PluginError."""
    available = plugins(config.get("plugins", ()))
    checker = Checker(available)
    # Versions up to 0.1 wrote a key `halvings` into run.yaml.
    known = {key: value for key, value in config["machine"].items() if key != "halvings"}
    machine = checker.block(Machine, known, "machine").value
    checker.data = machine.data
    planned = checker.run(dict(config["run"]), label=config["label"])
    checker.mistakes.raise_if_any("run.yaml")
    if planned is None:
        raise ConfigError("run.yaml: the config is not complete")
    return planned, machine, available


def read_sweep(
    path: Path, folders: Iterable[Path | str] = (), settings: Iterable[str] = (), where: Where | None = None
) -> Sweep:
    """Read and check a sweep file.

    `folders` hold further plug-ins. `settings` are ``key=value`` texts that override the file: keys of a run (dotted keys
    reach into blocks), ``grid.key=[...]``, and keys of the sections `cluster`, `machine` and `tune`. With `where`, plug-ins
    and splits are also checked against the task, see `fedbench.plan.task_checks`.
    Raises ConfigError with all mistakes. A mistake in a name comes with the legal names and the closest one.
    """
    try:
        available = plugins(tuple(folders))
        _ = available.classes
    except PluginError as error:
        raise ConfigError(str(error)) from error
    path = sweep_file(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in (HOME / "sweeps").glob("*.yaml")))
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); fedbench's own sweeps are {names}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{shown(str(path))}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(SECTIONS)}")
    return check_sweep(content, available, settings, source=str(path), default_name=path.stem, where=where)


def check_sweep(
    content: Mapping[str, Any],
    available: Plugins,
    settings: Iterable[str] = (),
    source: str = "sweep",
    default_name: str = "sweep",
    where: Where | None = None,
) -> Sweep:
    """The checked sweep of a parsed file; see `read_sweep`. Raises ConfigError."""
    checker = Checker(available)
    mistakes = checker.mistakes
    forget()  # files may have changed since the last sweep of this process
    settings = list(settings)
    sections = _sections(content, mistakes)
    for_all_runs = apply_settings(sections, settings, mistakes)
    base, grid = sections["base"], sections["grid"]
    legal = RunConfig.model_fields
    mistakes.unknown_names(dict.fromkeys(str(key).split(".")[0] for key in [*base, *grid]), legal, "base or grid")
    # Unknown keys are left out from here on, so that mistakes in the others are found as well.
    base, grid = ({k: v for k, v in part.items() if str(k).split(".")[0] in legal} for part in (base, grid))
    machine: Machine = checker.block(Machine, sections["machine"], "machine").value
    checker.data = machine.data.resolve()
    for problem in missing_trackers(machine.track):
        mistakes.add("machine.track", problem)
    cluster: Cluster = checker.block(Cluster, sections["cluster"], "cluster").value
    # `tune: {}` is a tuning with defaults; no `tune`, or `--set tune=null`, is none.
    tunes = sections["tune"] or (sections["tune"] is not None and content.get("tune") is not None)
    tune: Tune | None = checker.block(Tune, sections["tune"], "tune").value if tunes else None
    before = len(mistakes)
    axes = checked_axes(grid, sections["zip"], mistakes)
    # Wrong lists make too few runs, so that an entry of `exclude` may match none of them.
    may_match_none = overridden(settings) if len(mistakes) == before else set(legal)
    exclusion = Exclusion(sections["exclude"], available, mistakes)
    runs: dict[str, PlannedRun] = {}
    for run in exclusion.kept(expand(base, axes, for_all_runs, mistakes), may_match_none):
        planned = checker.run(run)
        add_unused_momentum(run, mistakes)
        if planned is not None:
            add_unused_options(run, planned, available, mistakes)
            schedule.add_mistakes(run, planned.run, mistakes)
            runs.setdefault(planned.key, planned)
    if tune is not None:
        _check_tune(tune, list(runs.values()), available, mistakes)
    if where is not None:
        check_tasks(checker, [planned.run for planned in runs.values()], machine, where)
    mistakes.raise_if_any(source)
    return Sweep(sections["name"] or default_name, tuple(runs.values()), machine, cluster, available, tune)


def check_not_begun(sweep: Sweep, names: Collection[str], source: str) -> None:
    """Check the runs `names` of a sweep that was read without `where`. Raises ConfigError with every mistake.

    The device is not checked, since jobs may run elsewhere.
    """
    runs = [planned.run for planned in sweep.runs if planned.name in names]
    if runs:
        checker = Checker(sweep.plugins)
        check_tasks(checker, runs, sweep.machine, "elsewhere")
        checker.mistakes.raise_if_any(source)


def _sections(content: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """A copy of the sections of a sweep file; each but `name` and the lists is a mapping."""
    mistakes.unknown_names(content, SECTIONS, "")
    sections = {key: copy.deepcopy(content.get(key)) for key in SECTIONS}
    for key in SECTIONS[1:]:
        if key in LISTS:
            continue  # checked with their entries
        if sections[key] is None:
            sections[key] = {}
        elif not isinstance(sections[key], dict):
            mistakes.add(key, f"expected a mapping, found {shown(sections[key])}")
            sections[key] = {}
    if not isinstance(sections["name"], str | None):
        mistakes.add("name", f"expected text, found {shown(sections['name'])}; put text in quotes")
    return sections


def _check_tune(tune: Tune, runs: Sequence[PlannedRun], available: Plugins, mistakes: Mistakes) -> None:
    """Add the mistakes of `tune`: invalid ranges, fields that no plug-in has, and missing validation data."""
    if any(planned.run.clients.validation == 0 for planned in runs):
        mistakes.add("tune", "clients.validation is 0, and values are chosen by validation accuracy alone")
    if tune.search.get("local.momentum") and not any(planned.run.local.optimizer == "sgd" for planned in runs):
        mistakes.add("tune.search", "local.momentum has no effect: no run has `optimizer: sgd`")
    for path, range_ in tune.search.items():
        kind, _, name = path.partition(".")
        if kind in ("method", "aggregation"):
            fields = {field.name for cls in available.classes[kind].values() for field in dataclasses.fields(cls)}  # type: ignore[index]
            mistakes.unknown_names([name], sorted(fields), f"tune.search, {kind}")
        elif kind in PLUGIN_KINDS:
            mistakes.add("tune.search", f"{path} is part of the setting, and is not searched")
        else:
            mistakes.unknown_names([kind], RunConfig.model_fields, "tune.search")
        if range_ is not None:
            try:
                check_range(path, {str(law): values for law, values in range_.items()})
            except ConfigError as error:
                mistakes.add("", str(error))


def with_values(
    planned: PlannedRun, values: Mapping[str, Any], available: Plugins, tuning: Mapping[str, Any]
) -> PlannedRun:
    """`planned` with other `values` at dotted paths (``local.lr``, ``method.temperature``). Raises ConfigError."""
    checker = Checker(available)
    content = copy.deepcopy(planned.run.model_dump())
    for path, value in values.items():
        set_path(content, path, value, checker.mistakes)
    new = checker.run(content, label=planned.label)
    checker.mistakes.raise_if_any(f"tune, {planned.label}")
    if new is None:
        raise ConfigError(f"tune, {planned.label}: {dict(values)} makes no run")
    return dataclasses.replace(new, tuning=tuning)


def missing_trackers(names: Iterable[str]) -> list[str]:
    """A sentence for each of the trackers `names` whose package is not installed. Packages have the trackers' names."""
    installed = [name for name in TRACKERS if importlib.util.find_spec(name)]
    return [
        f"{name} needs the package {name}, which is not installed; installed: {', '.join(installed) or 'none'}"
        for name in names
        if name not in installed
    ]
