"""Checks runs against their task while a sweep is planned: backbone, plug-ins, splits and the device.

Nothing is fetched, decoded or written: the architecture has no weights (torch's meta device), and `Dataset.extent` gives
the size of the dataset. If a dataset is not prepared, checks that depend on it are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from fedbench.base.planned_task import PlannedTask
from fedbench.data import DataError, Extent
from fedbench.method import Aggregation, Method, Task
from fedbench.method.fitting import (
    check_blocks,
    check_novel,
    check_parameters,
    check_prefixes,
    check_private,
    check_text,
)
from fedbench.plan.checker import Checker
from fedbench.plan.config import Machine, RunConfig
from fedbench.plan.device import choose_device
from fedbench.plan.plugins import PLUGIN_KINDS, Kind
from fedbench.plan.split import split_of

if TYPE_CHECKING:
    from fedbench.vit.backbone import Backbone

Where = Literal["here", "elsewhere"]  # runs will be done on this machine or on others
T = TypeVar("T")


def check_tasks(checker: Checker, runs: Iterable[RunConfig], machine: Machine, where: Where) -> None:
    """Add the mistakes that depend on the task, of `runs` and of the checker's drafts."""
    if where == "here":
        try:
            choose_device(machine.device)
        except ValueError as error:
            checker.mistakes.add("machine.device", str(error))
    checks = _TaskChecks(checker, machine)
    for run in runs:
        checks.check(run, frozenset())
    for draft in checker.drafts:
        checks.check(draft.run, draft.wrong)


class _TaskChecks:
    """Checks runs against their tasks. A check that several runs share is made once."""

    def __init__(self, checker: Checker, machine: Machine) -> None:
        self.plugins, self.mistakes, self.machine = checker.plugins, checker.mistakes, machine
        self._memo: dict[str, Any] = {}

    def check(self, run: RunConfig, wrong: frozenset[str]) -> None:
        """Check one run. Places in `wrong` already have mistakes; checks that depend on them are skipped."""

        def is_right(block: str, *keys: str) -> bool:
            places = {f"{block}.{key}" for key in keys}
            return not any(place.startswith(f"{block}.") if not keys else place in places for place in wrong)

        fields = run.model_dump()
        vit = extent = None
        if is_right("backbone", "name", "image_size", "pool", "*"):
            vit = self._once(["backbone", fields["backbone"]], lambda: self._architecture(run))
        if is_right("dataset"):
            extent = self._once(["dataset", fields["dataset"]], lambda: self._extent(run))
        if (
            extent is not None
            and is_right("partition")
            and is_right("clients", "number", "held_out", "validation", "*")
        ):
            parts = [fields[name] for name in ("dataset", "partition")]
            size = [run.clients.number, run.clients.held_out, run.clients.validation, run.stream("partition")]
            self._once(["split", parts, size], lambda: self._split(run, extent))
        if vit is not None and is_right("clients", "number", "*"):
            shared = {name: value for name, value in fields.items() if name not in ("seed", "seeds", "evaluate_every")}
            kinds = [kind for kind in PLUGIN_KINDS if is_right(kind)]
            self._once(["plugins", shared, kinds], lambda: self._plugins(run, vit, extent, kinds))

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        text = json.dumps(key, sort_keys=True, default=str)
        if text not in self._memo:
            self._memo[text] = make()
        value: T = self._memo[text]
        return value

    def _architecture(self, run: RunConfig) -> Backbone | None:
        from fedbench.vit import backbone, two_towers  # imports timm, which takes seconds

        name = run.backbone.name
        if run.backbone.template is not None and not two_towers.is_two_towers(name):
            message = f"{name} has no text tower; leave it out, or use clip_nano or another vision-language model"
            self.mistakes.add("backbone.template", message)
        try:
            block = run.backbone
            return backbone.architecture(block.name, block.image_size, block.weights, block.pool)
        except backbone.BackboneError as error:
            self.mistakes.add("backbone", str(error))
            return None

    def _extent(self, run: RunConfig) -> Extent | None:
        try:
            extent: Extent = self.plugins.make("dataset", run.dataset).extent(self.machine.data)
        except DataError as error:
            if any(isinstance(value, Path) for value in run.dataset.values()):  # the user's own files exist here
                self.mistakes.add(f"dataset {run.dataset['name']}", str(error))
            return None
        return extent

    def _split(self, run: RunConfig, extent: Extent) -> None:
        if extent.samples is None:
            return
        try:
            split_of(run, extent.samples, self.plugins.make("partition", run.partition))
        except DataError as error:
            self.mistakes.add(f"partition {run.partition['name']}", str(error))

    def _plugins(self, run: RunConfig, vit: Backbone, extent: Extent | None, kinds: list[Kind]) -> None:
        """Call the `check` of the plug-ins of `kinds`, and check the blocks and parameters of the method."""
        task, fields = _planned_task(run, vit, extent), run.model_dump()
        for kind in kinds:
            name, plugin = fields[kind]["name"], self.plugins.make(kind, fields[kind])
            if plugin.check is not None and not self._passes(kind, name, plugin.check, task, fields):
                continue
            if kind == "method" and not self._passes(kind, name, check_text, plugin, self._has_text(run)):
                continue
            if kind == "method" and not self._passes(kind, name, check_novel, plugin, run.clients.novel):
                continue
            if kind == "method" and self._passes(kind, name, check_blocks, plugin, vit.depth):
                parts = [fields[part] for part in ("method", "aggregation", "backbone")]
                self._passes(kind, name, check_prefixes, plugin, vit.takes_prefixes)
                aggregation = self.plugins.make("aggregation", parts[1]) if "aggregation" in kinds else None
                fit = partial(
                    self._passes, kind, name, _parameters_fit, plugin, aggregation, _task(run, vit, extent, plugin)
                )
                self._once(["parameters", parts, task.num_clients, task.num_classes], fit)

    def _has_text(self, run: RunConfig) -> bool:
        from fedbench.vit import two_towers

        return two_towers.is_two_towers(run.backbone.name)

    def _passes(self, kind: Kind, name: str, check: Callable[..., None], *arguments: Any) -> bool:
        """Call `check` and return whether it raised nothing. Any exception becomes a mistake of the plug-in."""
        try:
            check(*arguments)
        except Exception as error:  # noqa: BLE001 - a user's hook may raise anything
            text = str(error).removeprefix(f"{name}: ")
            self.mistakes.add(
                f"{kind} {name}", text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
            )
            return False
        return True


def _parameters_fit(method: Method, aggregation: Aggregation | None, task: Task) -> None:
    """Raise ValueError for parameters that do not fit the method's options."""
    if aggregation is not None:
        check_private(method, aggregation)
    spec = method.params(task)
    check_parameters(method, spec if aggregation is None else {**spec, **aggregation.params(spec, task)})


def _held_out(run: RunConfig) -> int:
    out = run.clients.held_out
    return int(out) if out >= 1 else round(out * run.clients.number)


def _planned_task(run: RunConfig, vit: Backbone, extent: Extent | None) -> PlannedTask:
    sizes = (vit.width, vit.depth, vit.patch_size, vit.image_size)
    counts = (None, None, None) if extent is None else (extent.classes, extent.train, extent.test)
    return PlannedTask(run.clients.number, _held_out(run), *sizes, *counts)


def _task(run: RunConfig, vit: Backbone, extent: Extent | None, method: Method) -> Task:
    """A task with the run's sizes, and with two classes while the dataset is not prepared."""
    classes = 2 if extent is None else extent.classes
    task = Task(
        num_classes=classes,
        num_clients=run.clients.number,
        width=vit.width,
        depth=vit.depth,
        patch_size=vit.patch_size,
        class_counts=torch.ones(1, 1).expand(run.clients.number, classes),
        seed=0,
        image_size=vit.image_size,
        frozen=dict(vit.named_parameters()),
        held_out=_held_out(run),
        rounds=run.rounds,
        local=run.local.model_dump(),
    )
    if not method.reads_text:
        return task
    from fedbench.text.text_cost import planned_text

    return planned_text(task, run.backbone.name, run.backbone.weights, ("class",) * classes)[0]
