"""No hook sees what it must not: other samples, padding, other clients, what stays with a client, or its own past."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedbench.contract import ContractError, check, hook_name
from fedbench.contract.rounds import COHORT, TOLERANCE, agree, kept, row, updates_agree
from fedbench.contract.world import Case, tiny
from fedbench.method import Method
from fedbench.plan.plugins import execute
from fedbench.run.stacked_model import StackedModel

SAMPLES = {"prompts": (1, 2), "logits": (1,), "pixels": (1,), "extra_loss": (2, 3)}  # which arguments hold samples
OBSERVED = (1, 2, 3)  # of observe: taps, query, y


class Probe(StackedModel):
    """A cohort that calls each hook a second time with another last sample, and looks whether others notice."""

    def each(self, hook: Any, args: tuple[Any, ...], dims: tuple[Any, ...], call: Any = None) -> Any:
        """As in Cohort. Raises ContractError."""
        result = super().each(hook, args, dims, call)
        name = hook_name(hook)
        if not isinstance(getattr(hook, "__self__", None), Method):
            return result
        if name in SAMPLES:
            other = self._changed(args, SAMPLES[name])
            with torch.no_grad():
                _look(name, result, super().each(hook, other, dims, call))
        elif name == "observe" and len(padded := torch.nonzero(args[4][:, -1] == 0).flatten()):
            with torch.no_grad():
                again = super().each(hook, self._changed(args, OBSERVED), dims, call)
            expected = "sums without padding: weigh each sample by `weight`, which is 0 there"
            agree("observe()", expected, _rows(result, padded), _rows(again, padded))
        return result

    def _changed(self, args: tuple[Any, ...], which: tuple[int, ...]) -> tuple[Any, ...]:
        """The arguments with another last sample of each client in those numbered `which`."""

        def other(value: Tensor) -> Tensor:
            value = value.detach().clone()
            classes = self.method_classes
            value[:, -1] = value[:, -1] * 1.7 + 0.3 if value.is_floating_point() else (value[:, -1] + 1) % classes
            return value

        return tuple(
            pytree.tree_map(other, arg) if i in which and arg is not None else arg for i, arg in enumerate(args)
        )

    @property
    def method_classes(self) -> int:
        """C."""
        return int(self.labels.max()) + 1


def _rows(values: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}


def _look(name: str, first: Any, again: Any) -> None:
    """Raise ContractError where any but the last sample of a hook's result [K, B, ...] has changed."""
    named = {f", slot {key!r}": (value, again[key]) for key, value in first.items()} if isinstance(first, dict) else {}
    for part, (a, b) in (named or {"": (first, again)}).items():
        if a.dim() == 1:  # a scalar of each client
            expected = "[B] where it is about samples (the core leaves out padding), a scalar about parameters alone"
            seen, found = a - b, "a scalar that depends on samples"
        else:
            expected = "what it gives for a sample to depend on that sample alone"
            seen, found = (a - b)[:, :-1], "a change for the others when the last sample of a batch changes"
        if seen.numel() and not float(seen.abs().max()) < TOLERANCE:
            raise ContractError(f"{name}(){part}", expected, found)


@check("round")
def samples_do_not_see_each_other(case: Case) -> None:
    """What a hook gives for a sample depends on that sample alone, and observe() leaves padding out."""
    small = case.warmed()
    shared = {field.name: getattr(small.model, field.name) for field in dataclasses.fields(StackedModel)}
    small.round(COHORT, model=Probe(**shared))


@check("round")
def nothing_is_remembered_outside_params(case: Case) -> None:
    """A hook keeps nothing on the method, its class or its module: what survives a call is declared in params()."""
    method = dataclasses.replace(case.method)
    small = tiny(method, case.aggregation)
    small.introduce(range(len(small.train)))
    first = small.round(COHORT[:1])
    small.round(COHORT[1:])
    cohorts = [small.model, *(c for phase in small.trainer.phases for c in (phase.model, *phase.views.values()))]
    for plugin in (*(cohort.method for cohort in cohorts), case.aggregation):
        _no_leftovers(plugin)
    expected = "the same whoever trained before (no state in globals or on the class)"
    updates_agree(expected, first, small.round(COHORT[:1]))


def _no_leftovers(plugin: Any) -> None:
    """Raise ContractError where the object, its class or its module holds more than a fresh import of the file gives."""
    cls = type(plugin)
    known = {field.name for field in dataclasses.fields(cls)} | {"phase", "view"}
    wanted = "values that last in params(), with home local, server or server_only"
    for name in vars(plugin).keys() - known:
        if not isinstance(value := getattr(cls, name, None), property) and type(value).__name__ != "cached_property":
            raise ContractError("the object", wanted, f"self.{name} set by a hook")
    module = sys.modules[cls.__module__]
    if not module.__name__.startswith("fedbench_plugin_"):  # the base class itself
        return
    fresh = execute(Path(inspect.getfile(cls)), module.__name__ + "_again")
    places = [("the module", vars(module), vars(fresh))]
    places += [("the class", vars(cls), vars(getattr(fresh, cls.__name__)))]
    for where, now, then in places:
        for name, value in now.items():
            grown = isinstance(value, dict | list | set | int | float | Tensor) and not name.startswith("__")
            if grown and (name not in then or _size(value) != _size(then[name])):
                raise ContractError(where, wanted, f"{name} changed by a hook")


def _size(value: Any) -> Any:
    return len(value) if isinstance(value, dict | list | set) else repr(value)


@check("run")
def send_keeps_clients_apart(case: Case) -> None:
    """send() gives a client the same whoever else is asked for, a row for each, under names of params()."""
    if case.method.send is None:
        return
    small = case.warmed()
    made = small.server.generated(torch.tensor(COHORT))
    for i, k in enumerate(COHORT):
        alone = small.server.generated(torch.tensor([k]))
        agree("send()", f"client {k}'s row to be the same alone", _rows(made, torch.tensor([i])), alone)


@check("merge")
def merge_keeps_clients_apart(case: Case) -> None:
    """What merge() gives a client to keep comes from that client's updates and the server's values."""
    small = case.warmed()
    updates = small.round(COHORT)
    together = small.copy()
    together.server.merge(updates)
    for i, k in enumerate(updates.clients.tolist()):
        alone = small.copy()
        alone.server.merge(row(updates, i))
        one = torch.tensor([k])
        agree("merge()", f"client {k}'s row to come from its own updates alone", kept(together, one), kept(alone, one))


@check("merge")
def what_is_local_stays_with_the_client(case: Case) -> None:
    """merge() makes nothing on the server of values with home local: they are not sent."""
    small = case.warmed()
    updates = small.round(COHORT)
    local = [n for n in updates.updated if small.server.spec[n].home == "local"]

    def other(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value + 0.25 if name in local else value for name, value in values.items()}

    worlds = small.copy(), small.copy()
    worlds[0].server.merge(updates)
    worlds[1].server.merge(
        dataclasses.replace(updates, updated=other(updates.updated), received=other(updates.received))
    )
    expected = f"no trace of what clients keep to themselves ({', '.join(local)})"
    agree("merge()", expected, worlds[0].server.values, worlds[1].server.values)


CHECKS = (
    samples_do_not_see_each_other,
    nothing_is_remembered_outside_params,
    send_keeps_clients_apart,
    merge_keeps_clients_apart,
    what_is_local_stays_with_the_client,
)
