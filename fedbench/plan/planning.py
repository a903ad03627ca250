"""From a sweep file to runs: every key checked, all mistakes told at once."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib.util
import itertools
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fedbench.base.home import HOME, sweep_file
from fedbench.data import DataError, Dataset
from fedbench.plan import content as content_hashes
from fedbench.plan.config import (
    TRACKERS,
    Block,
    Cluster,
    ConfigError,
    Machine,
    PlannedRun,
    RunConfig,
    Sweep,
    Tune,
    short_name,
)
from fedbench.plan.plugins import PLUGIN_KINDS, Kind, PluginError, Plugins, plugins


def planned_from_disk(config: Mapping[str, Any]) -> tuple[PlannedRun, Machine, Plugins]:
    """The inverse of `Sweep.on_disk`. Raises ConfigError or PluginError."""
    found = plugins(config.get("plugins", ()))
    checker = _Checker(found)
    machine = checker.block(Machine, config["machine"], "machine")
    checker.data = machine.data if machine else None
    planned = checker.run(dict(config["run"]), label=config["label"])
    checker.raise_if_any()
    if planned is None or machine is None:
        raise ConfigError("run.yaml is not complete")
    return planned, machine, found


def read_sweep(path: Path, folders: Iterable[Path | str] = (), settings: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep file; `settings` are ``key=value`` lines that override `base` (dotted keys reach inside);
    ``grid.key=[...]`` puts another list in its place.

    Raises ConfigError with every mistake found, each with the legal names and the nearest one.
    """
    try:
        found = plugins(tuple(folders))
        _ = found.classes
    except PluginError as error:
        raise ConfigError(str(error)) from error
    path = sweep_file(path)
    try:
        content = yaml.load(path.read_text(), Loader=_UniqueKeys)  # noqa: S506 - derives from SafeLoader
    except OSError as error:
        own = ", ".join(sorted(file.stem for file in (HOME / "sweeps").glob("*.yaml")))
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); fedbench's own sweeps are {own}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(_TOP)}")
    return check_sweep(content, found, settings, source=str(path), default_name=path.stem)


def changed(planned: PlannedRun, values: Mapping[str, Any], found: Plugins, tuning: Mapping[str, Any]) -> PlannedRun:
    """`planned` with other `values` at dotted paths (``local.lr``, ``method.temperature``). Raises ConfigError."""
    checker = _Checker(found)
    content = copy.deepcopy(planned.run.model_dump())
    for path, value in values.items():
        checker.set(content, path, value)
    new = checker.run(content, label=planned.label)
    checker.raise_if_any(f"tune, {planned.label}")
    if new is None:
        raise ConfigError(f"tune, {planned.label}: {dict(values)} makes no run")
    return dataclasses.replace(new, tuning=tuning)


_TOP = ("name", "base", "grid", "tune", "cluster", "machine")


def check_sweep(
    content: Mapping[str, Any],
    found: Plugins,
    settings: Iterable[str] = (),
    source: str = "sweep",
    default_name: str = "sweep",
) -> Sweep:
    """The checked sweep of an already parsed file. Raises ConfigError."""
    checker = _Checker(found)
    content_hashes.forget()
    checker.names(content, _TOP, "")
    content = {key: copy.deepcopy(content.get(key)) for key in _TOP}
    for key in ("base", "grid", "tune", "cluster", "machine"):
        content[key] = {} if content[key] is None else content[key]
        if not isinstance(content[key], dict):
            checker.mistake(key, f"expected a mapping, found {content[key]!r}")
            content[key] = {}
    base, grid = content["base"], content["grid"]
    legal = tuple(RunConfig.model_fields)
    by_hand: list[tuple[str, Any]] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        try:
            value = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - derives from SafeLoader
        except yaml.YAMLError as error:
            checker.mistake(f"--set {setting}", f"not a YAML value: {' '.join(str(error).split())}")
            continue
        if not equals:
            checker.mistake(f"--set {setting}", "expected key=value")
        elif name.split(".")[0] in ("cluster", "machine", "tune"):
            checker.set(content, name, value)
        elif name.startswith("grid."):
            grid[name.removeprefix("grid.")] = value  # another list for this key
        elif checker.names([name.split(".")[0]], legal, "--set"):
            grid.pop(name, None)  # a value given by hand replaces the whole list
            by_hand.append((name, value))
    checker.names({str(key).split(".")[0]: None for key in [*base, *grid]}, legal, "base or grid")
    # What is wrong so far is told and left out, so that the mistakes inside the rest are told as well.
    base, grid = ({k: v for k, v in part.items() if str(k).split(".")[0] in legal} for part in (base, grid))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            checker.mistake(f"grid.{key}", f"expected a list with at least one value, found {values!r}")
            grid[key] = [values]
    machine = checker.block(Machine, content["machine"], "machine")
    checker.data = machine.data.resolve() if machine else None
    for problem in missing_trackers(machine.track) if machine else ():
        checker.mistake("machine.track", problem)
    cluster = checker.block(Cluster, content["cluster"], "cluster")
    tune = checker.block(Tune, content["tune"], "tune") if content["tune"] else None
    runs: dict[str, PlannedRun] = {}
    for run in _expand(base, grid, by_hand, checker):
        planned = checker.run(run)
        if planned is not None:
            runs.setdefault(planned.key, planned)
    checker.raise_if_any(source)
    if machine is None or cluster is None:
        raise ConfigError(f"{source}: no machine or cluster block")
    machine = machine.model_copy(update={"data": machine.data.resolve()})
    return Sweep(str(content["name"] or default_name), tuple(runs.values()), machine, cluster, found, tune)


def missing_trackers(names: Iterable[str]) -> list[str]:
    """A sentence for each of the trackers `names` whose package is not installed here; packages are called as trackers."""
    installed = [name for name in TRACKERS if importlib.util.find_spec(name)]
    return [
        f"{name} needs the package {name}, which is not installed; installed: {', '.join(installed) or 'none'}"
        for name in names
        if name not in installed
    ]


def _expand(
    base: dict[str, Any], grid: dict[str, list[Any]], by_hand: list[tuple[str, Any]], checker: _Checker
) -> Iterator[dict[str, Any]]:
    """`base` with every combination of the grid's values; a value's own ``with:`` overlays the whole run, `by_hand` all."""
    for combination in itertools.product(*grid.values()):
        run: dict[str, Any] = {}
        overlays: list[tuple[str, Any]] = []
        for key, value in [*base.items(), *zip(grid, combination, strict=True)]:
            if isinstance(value, dict) and "with" in value:
                value = dict(value)
                overlay = value.pop("with") or {}
                if isinstance(overlay, dict):
                    overlays.extend(overlay.items())
                else:
                    checker.mistake(f"{key}.with", f"expected a mapping, found {overlay!r}")
            checker.set(run, key, _copied(value), merge=True)
        for key, value in overlays:
            checker.set(run, key, _copied(value), merge=True)
        for key, value in by_hand:
            checker.set(run, key, _copied(value))
        yield run


def _copied(value: Any) -> Any:
    """A copy of what YAML gives: mappings and lists of plain values."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


class _Checker:
    """Collects mistakes instead of stopping at the first."""

    def __init__(self, found: Plugins) -> None:
        self.plugins = found
        self.mistakes: dict[str, None] = {}  # ordered, each once however many runs share it
        self.data: Path | None = None  # the data folder, which has the index of hashes of files
        self._blocks: dict[str, tuple[dict[str, Any] | None, Any]] = {}

    def mistake(self, where: str, what: str) -> None:
        self.mistakes[f"{where}: {what}" if where else what] = None

    def names(self, given: Iterable[Any], legal: Iterable[str], where: str) -> bool:
        """Whether every name is legal; a mistake for each that is not."""
        legal = list(legal)
        wrong = [name for name in given if name not in legal]
        for name in wrong:
            near = difflib.get_close_matches(str(name), legal, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            self.mistake(where, f"unknown name {name!r}; {hint}legal: {', '.join(legal)}")
        return not wrong

    def set(self, tree: dict[str, Any], dotted: str, value: Any, merge: bool = False) -> None:
        """Put `value` at the path `dotted` of `tree`; `merge` adds a mapping to the one there."""
        *path, last = str(dotted).split(".")
        for part in path:
            inner = tree.setdefault(part, {})
            if isinstance(inner, str) and part in PLUGIN_KINDS:
                inner = tree[part] = {"name": inner}
            if not isinstance(inner, dict):
                return self.mistake(dotted, f"{part} is {inner!r} and has no keys")
            tree = inner
        plugin = isinstance(value, dict) and "name" in value  # a named block is whole: its fields belong to that name
        if merge and not plugin and isinstance(value, dict) and isinstance(tree.get(last), dict):
            tree[last] = tree[last] | value
        else:
            tree[last] = value

    def block(self, model: type[Block], value: Any, where: str) -> Any:
        """`value` as a `model`, or None and mistakes."""
        if not isinstance(value, dict):
            self.mistake(where, f"expected a mapping, found {value!r}")
            return None
        legal = self.names(value, model.model_fields, where)
        try:
            made = model.model_validate({key: item for key, item in value.items() if key in model.model_fields})
        except ValidationError as error:
            self._explain(error, where)
            return None
        return made if legal else None

    def plugin(self, kind: Kind, value: Any) -> tuple[dict[str, Any] | None, Any]:
        """A plug-in block with all its fields, or None and mistakes; and its identity. Cached: a grid repeats its blocks.

        Raises OSError where a file that it names cannot be read, DataError where a dataset cannot read its folder.
        """
        memo = kind + json.dumps(value, sort_keys=True, default=str)
        if memo not in self._blocks:
            block = self._plugin(kind, value)
            dataset = self.plugins.make(kind, block) if kind == "dataset" and block else None
            files_read = dataset.files_read if isinstance(dataset, Dataset) else None
            self._blocks[memo] = block, content_hashes.by_content(block, files_read, self.data)
        return self._blocks[memo]

    def _plugin(self, kind: Kind, value: Any) -> dict[str, Any] | None:
        value = {"name": value} if isinstance(value, str) else value
        classes = self.plugins.classes[kind]
        if not isinstance(value, dict) or "name" not in value:
            self.mistake(kind, f"expected {{name: ...}} with one of {', '.join(sorted(classes))}, found {value!r}")
            return None
        if not self.names([value["name"]], sorted(classes), kind):
            return None
        cls = classes[value["name"]]
        given = {key: field for key, field in value.items() if key not in ("name", "label")}
        fields = [f.name for f in dataclasses.fields(cls)]
        where = f"{kind} {value['name']}"
        legal = self.names(given, fields, where)
        given = {key: field for key, field in given.items() if key in fields}
        try:
            made: Any = TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            self._explain(error, where)
            return None
        if not legal:
            return None
        full = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        full = {key: field.resolve() if isinstance(field, Path) else field for key, field in full.items()}
        return {"name": value["name"], **full}

    def run(self, content: dict[str, Any], label: str | None = None) -> PlannedRun | None:
        """A checked run, or None and mistakes."""
        blocks: dict[str, dict[str, Any] | None] = {}
        identities: dict[str, Any] = {}
        for kind in PLUGIN_KINDS:
            if kind not in content and kind != "aggregation":
                self.mistake(kind, "missing: every run needs one, under base or grid")
            value = content.get(kind, "fedavg" if kind == "aggregation" else None)
            try:
                blocks[kind], identities[kind] = self.plugin(kind, value)
            except OSError as error:
                blocks[kind] = None
                self.mistake("", f"{error.filename}: {error.strerror}")
            except DataError as error:
                blocks[kind] = None
                self.mistake(kind, str(error))
        models = {name: field.annotation for name, field in RunConfig.model_fields.items()}
        checked: dict[str, Any] = {}
        for key, value in content.items():
            model = models.get(key)
            if isinstance(model, type) and issubclass(model, Block):
                checked[key] = self.block(model, {} if value is None else value, key)
        if any(value is None for value in [*blocks.values(), *checked.values()]):
            return None
        try:
            run = RunConfig.model_validate({**content, **blocks, **checked})
        except ValidationError as error:
            self._explain(error, "run")
            return None
        out = run.clients.held_out
        eligible = run.clients.number - (int(out) if out >= 1 else round(out * run.clients.number))
        if run.clients.per_round > eligible:
            self.mistake(
                "clients",
                f"per_round is {run.clients.per_round}, but only {eligible} of {run.clients.number} clients take part "
                f"in training (held_out: {out:g})",
            )
            return None
        given = content["method"] if isinstance(content["method"], dict) else {}
        if label is None:
            label = given.get("label") or self._label(run)
        whole = run.model_dump()
        try:
            identity = {**whole, **identities, "backbone": content_hashes.by_content(whole["backbone"])}
        except OSError as error:
            self.mistake("", f"{error.filename}: {error.strerror}")
            return None
        return PlannedRun(run, str(label), identity)

    def _label(self, run: RunConfig) -> str:
        label = short_name(run.method, self.plugins.classes["method"][run.method["name"]])
        if run.aggregation["name"] != "fedavg":
            label += " + " + short_name(run.aggregation, self.plugins.classes["aggregation"][run.aggregation["name"]])
        return label

    def _explain(self, error: ValidationError, where: str) -> None:
        for item in error.errors():
            path = ".".join([where, *(str(part) for part in item["loc"])])
            self.mistake(path, f"{item['msg']}, found {item['input']!r}")

    def raise_if_any(self, source: str = "") -> None:
        """Raise ConfigError with all the mistakes so far."""
        if self.mistakes:
            count = f"{len(self.mistakes)} mistake{'s' if len(self.mistakes) > 1 else ''}"
            raise ConfigError(
                f"{source + ': ' if source else ''}{count}\n" + "\n".join(f"  - {m}" for m in self.mistakes)
            )


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice instead of dropping the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the parent class says so
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
