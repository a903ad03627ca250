"""Checks the blocks of a sweep file and the runs made of them. Mistakes are collected, not raised."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import TypeAdapter, ValidationError

from fedbench.data import Dataset
from fedbench.plan.availability import read_availability
from fedbench.plan.config import Block, PlannedRun, RunConfig, short_name
from fedbench.plan.content import FileLister, by_content
from fedbench.plan.identity import identity_of
from fedbench.plan.mistakes import Mistakes, shown
from fedbench.plan.paths import expanded, problem_with
from fedbench.plan.plugins import PLUGIN_KINDS, Kind, Plugins


@dataclass(frozen=True)
class Checked:
    """A block after its check: its value, with defaults in place of wrong values, and the wrong keys.

    A wrong key is "*" if it is unknown which key was meant. `value` is None for a plug-in with mistakes. `identity` is the
    value with files named by their content.
    """

    value: Any
    wrong: frozenset[str] = frozenset()
    identity: Any = None


@dataclass(frozen=True)
class Draft:
    """A run with mistakes, complete enough to check for more. `wrong`: the places of mistakes, such as ``clients.number``."""

    run: RunConfig
    wrong: frozenset[str]


class Checker:
    """Turns plain values into checked blocks and runs, and collects the mistakes.

    Equal blocks are checked once, since a grid repeats them in many runs.
    """

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.mistakes = Mistakes()
        self.drafts: list[Draft] = []
        self.data: Path | None = None  # the data folder, which stores hashes of files
        self._memo: dict[str, Checked] = {}

    def block(self, model: type[Block], value: Any, where: str) -> Checked:
        """The mapping `value` as a `model`."""
        memo = f"{where} {value!r}"
        if memo not in self._memo:
            self._memo[memo] = self._block(model, value, where)
        return self._memo[memo]

    def _block(self, model: type[Block], value: Any, where: str) -> Checked:
        if not isinstance(value, dict):
            self.mistakes.add(where, f"expected a mapping, found {shown(value)}")
            return Checked(model(), UNKNOWN)
        wrong = set() if self.mistakes.unknown_names(value, model.model_fields, where) else set(UNKNOWN)
        hints = {name: field.annotation for name, field in model.model_fields.items()}
        kept = {name: item for name, item in value.items() if name in hints}
        wrong |= {name for name, item in kept.items() if not self._is_plain(hints[name], item, f"{where}.{name}")}
        kept = {name: item for name, item in kept.items() if name not in wrong}
        try:
            made: Any = model.model_validate(kept)
        except ValidationError as error:
            wrong |= self.mistakes.explain(error, where)
            made = model.model_validate({name: item for name, item in kept.items() if name not in wrong})
        paths = {name: item for name, item in made if isinstance(item, Path)}
        fixed = {name: self._path(item, f"{where}.{name}", name != "data") for name, item in paths.items()}
        wrong |= {name for name, path in fixed.items() if path is None}
        return Checked(made.model_copy(update=fixed), frozenset(wrong))

    def _is_plain(self, hint: Any, value: Any, where: str) -> bool:
        """Whether `value` has no boolean in place of a number and no infinite number. Otherwise adds a mistake."""
        if isinstance(value, bool) and not accepts_booleans(hint):
            self.mistakes.add(where, f"expected a value that is not true or false, found {value}; quote what is text")
            return False
        if number := next((number for number in _numbers(value) if not math.isfinite(number)), None):
            self.mistakes.add(where, f"expected a finite number, found {number}")
            return False
        return True

    def _path(self, written: Path, where: str, must_exist: bool = True) -> Path | None:
        """The absolute path of `written`. Otherwise None, and a mistake is added."""
        try:
            path = expanded(written)
            problem = problem_with(path, written) if must_exist else None
        except (ValueError, RuntimeError, OSError) as error:  # RuntimeError: a circle of links
            path, problem = written, str(error)
        if problem is None:
            return path
        self.mistakes.add(where, problem)
        return None

    def plugin(self, kind: Kind, value: Any) -> Checked:
        """A plug-in block with all its fields, defaults included."""
        memo = f"{kind} {value!r}"
        if memo not in self._memo:
            block = self._plugin(kind, value)
            try:
                identity = by_content(self._identifying(kind, block), self._files_read(kind, block), self.data)
                self._memo[memo] = Checked(block, frozenset() if block else UNKNOWN, identity)
            except (OSError, ValueError) as error:
                self.mistakes.add("", _reason(error))
                self._memo[memo] = Checked(None, UNKNOWN)
        return self._memo[memo]

    def _identifying(self, kind: Kind, block: dict[str, Any] | None) -> dict[str, Any] | None:
        """The fields of a block that are part of a run's identity: all but later options that have their default."""
        if block is None:
            return None
        later = {
            field.name: field.default
            for field in dataclasses.fields(cast(Any, self.plugins.classes[kind][block["name"]]))
            if field.metadata.get("added_later")
        }
        return {name: value for name, value in block.items() if name not in later or value != later[name]}

    def _files_read(self, kind: Kind, block: dict[str, Any] | None) -> FileLister | None:
        """The hook of a dataset that lists the files of a folder which it reads."""
        dataset = self.plugins.make(kind, block) if kind == "dataset" and block else None
        return dataset.files_read if isinstance(dataset, Dataset) else None

    def _plugin(self, kind: Kind, value: Any) -> dict[str, Any] | None:
        value = {"name": value} if isinstance(value, str) else value
        classes = self.plugins.classes[kind]
        if not isinstance(value, dict) or "name" not in value:
            self.mistakes.add(
                kind, f"expected {{name: ...}} with one of {', '.join(sorted(classes))}, found {shown(value)}"
            )
            return None
        if not self.mistakes.unknown_names([value["name"]], sorted(classes), kind):
            return None
        cls: Any = classes[value["name"]]
        where = f"{kind} {value['name']}"
        entries = {
            name: item for name, item in value.items() if name not in ("name", *(("label",) * (kind == "method")))
        }
        fields = [f.name for f in dataclasses.fields(cls)]
        sound = self.mistakes.unknown_names(entries, fields, where)
        hints = _hints(cls)
        known = {name: item for name, item in entries.items() if name in fields}
        kept = {name: item for name, item in known.items() if self._is_plain(hints[name], item, f"{where}.{name}")}
        if len(kept) < len(known):
            sound = False
        try:
            made: Any = _adapter(cls).validate_python(kept)
        except ValidationError as error:
            self.mistakes.explain(error, where)
            return None
        except (ValueError, TypeError) as error:  # raised by a plug-in's __post_init__
            self.mistakes.add(where, str(error))
            return None
        full = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        for name, item in full.items():
            if isinstance(item, Path):
                full[name] = self._path(item, f"{where}.{name}")
                sound &= full[name] is not None
        return {"name": value["name"], **full} if sound else None

    def run(self, content: dict[str, Any], label: str | None = None) -> PlannedRun | None:
        """A checked run. Otherwise None: mistakes are added, and a draft if enough of the run is right."""
        checked: dict[str, Checked] = {}
        for kind in PLUGIN_KINDS:
            if kind in content:
                checked[kind] = self.plugin(kind, content[kind])
            elif kind == "aggregation":
                checked[kind] = self.plugin(kind, "fedavg")
            else:
                self.mistakes.add(kind, "missing: every run needs one, under base or grid")
                checked[kind] = Checked(None, UNKNOWN)
        for key, model in BLOCKS.items():
            value = content.get(key)
            checked[key] = self.block(model, {} if value is None else value, key)
        rest = {key: value for key, value in content.items() if key not in checked}
        scalars, sound = self._scalars(rest)
        metrics = self._metrics(scalars.get("metrics", ()))
        sound &= metrics is not None
        if label is None:
            label, fine = self._label_of(content.get("method"))
            sound &= fine
        blocks = {key: block.value if block.value is not None else {"name": ""} for key, block in checked.items()}
        scalars = scalars | {"metrics": tuple(metric.value for metric in metrics or ())}
        run = RunConfig.model_construct(**{**_defaults(), **scalars, **blocks})
        wrong = frozenset(f"{key}.{name}" for key, block in checked.items() for name in block.wrong)
        if not checked["clients"].wrong and not self._cohort_fits(run):
            wrong |= {"clients.per_round"}
        if not checked["clients"].wrong and not self._participation_fits(run):
            wrong |= {"clients.available"}
        if wrong or not sound:
            self.drafts.append(Draft(run, wrong))
            return None
        try:
            identity = identity_of(run)
            backbone, clients = by_content(identity["backbone"]), by_content(identity["clients"], data=self.data)
        except (OSError, ValueError) as error:
            self.mistakes.add("", _reason(error))
            return None
        identity |= {kind: checked[kind].identity for kind in PLUGIN_KINDS} | {"backbone": backbone, "clients": clients}
        if metrics:
            identity["metrics"] = [metric.identity for metric in metrics]
        return PlannedRun(run, label or self._label(run), identity)

    def _scalars(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The checked keys of a run that are not blocks, and whether all are right."""
        memo = f"run {content!r}"
        if memo not in self._memo:
            hints = {name: field.annotation for name, field in RunConfig.model_fields.items()}
            known = {name: item for name, item in content.items() if name in hints}
            kept = {name: item for name, item in known.items() if self._is_plain(hints[name], item, f"run.{name}")}
            sound = len(kept) == len(content)
            try:
                made = RunConfig.model_validate({**kept, "dataset": {}, "partition": {}, "method": {}})
                kept = {name: getattr(made, name) for name in kept}
            except ValidationError as error:
                wrong, sound = self.mistakes.explain(error, "run"), False
                kept = {name: item for name, item in kept.items() if name not in wrong}
            self._memo[memo] = Checked(kept, frozenset() if sound else UNKNOWN)
        return self._memo[memo].value, not self._memo[memo].wrong

    def _label_of(self, method: Any) -> tuple[str | None, bool]:
        """The `label` of a method block if there is one, and whether it is text."""
        if not isinstance(method, dict) or method.get("label") is None:
            return None, True
        label = method["label"]
        if isinstance(label, str) and label.strip():
            return label, True
        self.mistakes.add("method.label", f"expected text, found {shown(label)}; put text in quotes")
        return None, False

    def _cohort_fits(self, run: RunConfig) -> bool:
        """Whether enough clients train to fill a cohort. Otherwise adds a mistake."""
        out, number = run.clients.held_out, run.clients.number
        eligible = number - (int(out) if out >= 1 else round(out * number))
        if run.clients.per_round <= eligible:
            return True
        self.mistakes.add(
            "clients",
            f"per_round is {run.clients.per_round}, but only {eligible} of {number} clients take part in training "
            f"(held_out: {out:g})",
        )
        return False

    def _metrics(self, written: tuple[Any, ...]) -> list[Checked] | None:
        """The checked metric plug-ins of a run. Otherwise None, and mistakes are added."""
        metrics = [self.plugin("metric", value) for value in written]
        if any(metric.value is None for metric in metrics):
            return None
        names = [metric.value["name"] for metric in metrics]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            self.mistakes.add("metrics", f"{twice[0]} is there twice, and records have one column for each name")
            return None
        return metrics

    def _participation_fits(self, run: RunConfig) -> bool:
        """Whether the keys of participation have an effect and the file of availability can be read. Else adds mistakes."""
        clients, before = run.clients, len(self.mistakes)
        if clients.candidates is not None and clients.draw != "loss":
            self.mistakes.add(
                "clients.candidates", f"{clients.candidates} has no effect with `draw: uniform`, only with loss"
            )
        elif clients.candidates is not None and clients.candidates < clients.per_round:
            self.mistakes.add(
                "clients.candidates", f"expected at least per_round ({clients.per_round}), found {clients.candidates}"
            )
        if clients.stragglers and run.local.epochs == 1:
            self.mistakes.add(
                "clients.stragglers", "needs local.epochs of at least 2, since a straggler trains for fewer"
            )
        return self._is_readable(clients.available, clients.number) and len(self.mistakes) == before

    def _is_readable(self, path: Path | None, clients: int) -> bool:
        """Whether a file of availability, if any, can be read; a grid's runs share it. Otherwise adds a mistake."""
        memo = f"available {path} {clients}"
        if path is not None and memo not in self._memo:
            self._memo[memo] = Checked(None)
            try:
                read_availability(path, clients)
            except (OSError, ValueError) as error:
                self.mistakes.add("clients.available", _reason(error))
                self._memo[memo] = Checked(None, UNKNOWN)
        return path is None or not self._memo[memo].wrong

    def _label(self, run: RunConfig) -> str:
        label = short_name(run.method, self.plugins.classes["method"][run.method["name"]])
        if note := self.plugins.make("method", run.method).label_note:
            label += f", {note}"
        if run.aggregation["name"] != "fedavg":
            label += " + " + short_name(run.aggregation, self.plugins.classes["aggregation"][run.aggregation["name"]])
        return label


UNKNOWN = frozenset({"*"})
BLOCKS: dict[str, type[Block]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Block)
}


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    fields = RunConfig.model_fields.items()
    return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@lru_cache(maxsize=256)
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def accepts_booleans(hint: Any) -> bool:
    """Whether a field with the annotation `hint` may be true or false."""
    if hint is bool or hint is Any or hint is object:
        return True
    origin = typing.get_origin(hint)
    if origin is Literal:
        return any(isinstance(choice, bool) for choice in typing.get_args(hint))
    if origin in (typing.Annotated, typing.Union, types.UnionType):
        parts = typing.get_args(hint)[:1] if origin is typing.Annotated else typing.get_args(hint)
        return any(accepts_booleans(part) for part in parts)
    return False


def _numbers(value: Any) -> Iterator[float]:
    """All floating-point numbers in a value of nested lists and mappings."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _reason(error: Exception) -> str:
    """A sentence for an error in reading a file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
