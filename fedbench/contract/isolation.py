"""Isolation checks: no hook depends on other samples, padding, other clients, a client's private values or earlier calls."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedbench.contract import ContractError, check
from fedbench.contract.rounds import COHORT, TOLERANCE, agree, client_updates, local_values, updates_agree
from fedbench.contract.world import Case, task
from fedbench.method import Method
from fedbench.plan.plugins import execute
from fedbench.run.choice import chosen
from fedbench.run.stacked import rows
from fedbench.run.stacked_model import StackedModel

# The positions of each hook's arguments that hold samples.
SAMPLE_ARGUMENTS = {"prompts": (1, 2), "prefixes": (1,), "logits": (1,), "pixels": (1,), "extra_loss": (2, 3)}
# Hooks that see a whole batch: the positions of the arguments that hold samples, and of the samples' weights.
BATCH_ARGUMENTS = {"observe": ((1, 2, 3), 4), "batch_values": ((1,), 2)}


class PerturbingModel(StackedModel):
    """A stacked model that calls each hook again with another last sample and compares the results of the other samples."""

    def each(self, hook: Any, args: tuple[Any, ...], dims: tuple[Any, ...], call: Any = None) -> Any:
        """As in StackedModel. Raises ContractError if a hook's result depends on a sample that it must not depend on."""
        result = super().each(hook, args, dims, call)
        name = getattr(hook, "__name__", "?")
        if not isinstance(getattr(hook, "__self__", None), Method):
            return result
        if name == "extra_loss" and hook.__self__.reads_batch:
            self._expect_no_padding(hook, args, dims, result)
        elif name in SAMPLE_ARGUMENTS:
            with torch.no_grad():
                again = super().each(hook, self._perturbed(args, SAMPLE_ARGUMENTS[name]), dims, call)
            _expect_same_for_other_samples(name, result, again)
        elif name in BATCH_ARGUMENTS:
            samples, weight = BATCH_ARGUMENTS[name]
            padded = torch.nonzero(args[weight][:, -1] == 0).flatten()
            if len(padded):
                with torch.no_grad():
                    again = super().each(hook, self._perturbed(args, samples), dims, call)
                made = "sums" if name == "observe" else "values"
                expected = f"{made} without padding: multiply each sample by `weight`, which is 0 for padding"
                agree(f"{name}()", expected, rows(result, padded), rows(again, padded))
        return result

    def _expect_no_padding(self, hook: Any, args: tuple[Any, ...], dims: tuple[Any, ...], result: Tensor) -> None:
        """Raise ContractError if the loss of samples depends on padding; `hook` is `extra_loss`, which reads the batch."""
        weight = args[2]["weight"]
        changed = list(self._perturbed(args, SAMPLE_ARGUMENTS["extra_loss"]))
        changed[2]["weight"] = weight
        with torch.no_grad():
            again = super().each(hook, tuple(changed), dims)
        padded = weight[:, -1] == 0
        difference = (result.detach() - again)[padded]
        difference = difference if result.dim() == 1 else difference[:, :-1]
        if difference.numel() and not float(difference.abs().max()) < TOLERANCE:
            raise ContractError(
                "extra_loss()",
                'a loss without padding: leave out samples whose `out["weight"]` is 0',
                "a change of the loss when the padding of a batch changes",
            )

    def _perturbed(self, args: tuple[Any, ...], positions: tuple[int, ...]) -> tuple[Any, ...]:
        """The arguments, with another last sample of each client in those at `positions`."""
        classes = int(self.labels.max()) + 1

        def perturb(value: Tensor) -> Tensor:
            value = value.detach().clone()
            value[:, -1] = value[:, -1] * 1.7 + 0.3 if value.is_floating_point() else (value[:, -1] + 1) % classes
            return value

        return tuple(
            pytree.tree_map(perturb, arg) if i in positions and arg is not None else arg for i, arg in enumerate(args)
        )


def _expect_same_for_other_samples(name: str, first: Any, again: Any) -> None:
    """Raise ContractError if a hook's result [K, B, ...] has changed for any sample except the last."""
    results = {"": (first, again)}
    if isinstance(first, dict):
        results = {f", slot {key!r}": (value, again[key]) for key, value in first.items()}
    for part, pair in results.items():
        before, after = (value.detach() for value in pair)
        if before.dim() == 1:  # one scalar for each client
            expected = (
                "[B] for a term about samples (the core leaves out padding), a scalar for one about parameters only"
            )
            change, problem = before - after, "a scalar that depends on samples"
        else:
            expected = "a result for each sample that depends on that sample alone" + (
                ", or `reads_batch = True`" if name == "extra_loss" else ""
            )
            change, problem = (
                (before - after)[:, :-1],
                "a change for other samples when the last sample of a batch changes",
            )
        if change.numel() and not float(change.abs().max()) < TOLERANCE:
            raise ContractError(f"{name}(){part}", expected, problem)


@check("round")
def samples_do_not_see_each_other(case: Case) -> None:
    """What a hook returns for a sample depends on that sample alone, and observe() leaves padding out."""
    world = case.warmed_up()
    fields = {field.name: getattr(world.model, field.name) for field in dataclasses.fields(StackedModel)}
    world.round(COHORT, model=PerturbingModel(**fields))


@check("round")
def state_is_in_params_only(case: Case) -> None:
    """A hook stores nothing on the method, its class or its module: state is declared in params()."""
    world = dataclasses.replace(case, method=dataclasses.replace(case.method)).new_run()
    world.report_statistics(range(len(world.train)))
    first = world.round(COHORT[:1])
    world.round(COHORT[1:])
    models = [world.model, *(m for phase in world.trainer.phases for m in (phase.model, *phase.views.values()))]
    for plugin in (*(model.method for model in models), case.aggregation):
        _expect_no_state(plugin)
    expected = "a result that does not depend on the clients that trained before (no state in globals or on the class)"
    updates_agree(expected, first, world.round(COHORT[:1]))


def _expect_no_state(plugin: Any) -> None:
    """Raise ContractError if the object, its class or its module holds more than a fresh import of the file."""
    cls = type(plugin)
    declared = {field.name for field in dataclasses.fields(cls)} | {"phase", "view"}
    expected = "state in params() only, with home local, server or server_only"
    for name in vars(plugin).keys() - declared:
        attribute = getattr(cls, name, None)
        if not isinstance(attribute, property) and type(attribute).__name__ != "cached_property":
            raise ContractError("the object", expected, f"self.{name} set by a hook")
    module = sys.modules[cls.__module__]
    if not module.__name__.startswith("fedbench_plugin_"):  # the base class itself
        return
    fresh = execute(Path(inspect.getfile(cls)), module.__name__ + "_again")
    places = [("the module", vars(module), vars(fresh))]
    places += [("the class", vars(cls), vars(getattr(fresh, cls.__name__)))]
    for where, now, imported in places:
        for name, value in now.items():
            may_hold_state = isinstance(value, dict | list | set | int | float | Tensor) and not name.startswith("__")
            if may_hold_state and (name not in imported or _size(value) != _size(imported[name])):
                raise ContractError(where, expected, f"{name} changed by a hook")


def _size(value: Any) -> Any:
    return len(value) if isinstance(value, dict | list | set) else repr(value)


@check("run")
def send_keeps_clients_apart(case: Case) -> None:
    """send() returns a row for each client, under names of params(), that does not depend on the other clients."""
    if case.method.send is None:
        return
    world = case.warmed_up()
    together = world.server.generated(torch.tensor(COHORT))
    for i, client in enumerate(COHORT):
        alone = world.server.generated(torch.tensor([client]))
        agree("send()", f"the same row for client {client} alone", rows(together, slice(i, i + 1)), alone)


@check("run")
def choices_are_each_clients_own(case: Case) -> None:
    """choose_by_loss() chooses for a client alone, and from losses in pieces, what it chooses with other clients."""
    if case.method.choose_by_loss is None:
        return
    world = case.warmed_up()

    def choice(clients: tuple[int, ...], **change: Any) -> dict[str, Tensor]:
        trainer = dataclasses.replace(world.trainer, **change)
        received, parts = world.server.send(torch.tensor(clients)), [world.train[k] for k in clients]
        values, reported = chosen(trainer, received, world.server.read(), parts)
        return values | {name: value.double() for name, value in reported.items()}

    together = choice(COHORT)
    for i, client in enumerate(COHORT):
        expected = f"the same choice for client {client} alone"
        agree("choose_by_loss()", expected, rows(together, slice(i, i + 1)), choice((client,), piece=2))


@check("merge")
def merge_keeps_clients_apart(case: Case) -> None:
    """The local values that merge() returns for a client depend on that client's updates and the server's values alone."""
    world = case.warmed_up()
    updates = world.round(COHORT)
    together = world.copy()
    together.server.merge(updates)
    for i, client in enumerate(updates.clients.tolist()):
        alone = world.copy()
        alone.server.merge(client_updates(updates, i))
        number = torch.tensor([client])
        agree(
            "merge()",
            f"a row for client {client} that depends on its own updates only",
            local_values(together, number),
            local_values(alone, number),
        )


@check("merge")
def local_values_stay_with_the_client(case: Case) -> None:
    """merge() computes no server value from local values, which clients do not send."""
    world = case.warmed_up()
    updates = world.round(COHORT)
    local = [name for name in updates.updated if world.server.spec[name].home == "local"]
    if case.aggregation.encode is not None:  # whose message may hold what it keeps of its own, such as a residual
        local = [name for name in local if name in case.method.params(task())]

    def changed(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value + 0.25 if name in local else value for name, value in values.items()}

    first, second = world.copy(), world.copy()
    first.server.merge(updates)
    second.server.merge(
        dataclasses.replace(updates, updated=changed(updates.updated), received=changed(updates.received))
    )
    expected = f"no trace of the clients' local values ({', '.join(local)})"
    agree("merge()", expected, first.server.values, second.server.values)


CHECKS = (
    samples_do_not_see_each_other,
    state_is_in_params_only,
    send_keeps_clients_apart,
    choices_are_each_clients_own,
    merge_keeps_clients_apart,
    local_values_stay_with_the_client,
)
