"""Checks of whole rounds in the miniature run: clients are independent, padding has no effect, bytes are counted exactly.

Every check takes a `Case`. The cohort's clients have different numbers of samples, so they finish after different steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from fedbench.contract import ContractError, check
from fedbench.contract.world import CLIENTS, ROUNDS, SIZES, Case, MiniRun, task
from fedbench.method import ClientUpdates, Param
from fedbench.method.hooks import describe
from fedbench.plan.config import ClientsConfig, RunConfig
from fedbench.run.evaluation import accuracies
from fedbench.run.server import bytes_of_sums
from fedbench.run.stacked import rows

COHORT = (4, 0, 5, 2)  # of 9, 7, 1 and 12 samples: 6, 4, 2 and 6 batches of 4 in 2 epochs
TOLERANCE = 1e-10  # float64, a few dozen steps
RECIPES: tuple[dict[str, Any], ...] = ({}, {"optimizer": "adam", "clip": None})


def agree(source: str, expected: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raise ContractError if two sets of values differ by more than rounding; `source` is named in the message."""
    if a.keys() != b.keys():
        raise ContractError(source, expected, f"{sorted(a)} against {sorted(b)}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ContractError(
                f"{source}, {name!r}", expected, f"shape {list(a[name].shape)} against {list(b[name].shape)}"
            )
        if not a[name].is_floating_point():
            continue
        difference = float((a[name] - b[name]).abs().max()) if a[name].numel() else 0.0
        if not difference < TOLERANCE * max(1.0, float(a[name].abs().max()) if a[name].numel() else 0.0):
            raise ContractError(f"{source}, {name!r}", expected, f"a difference of {difference:.2g}")


def updates_agree(expected: str, a: ClientUpdates, b: ClientUpdates) -> None:
    """Raise ContractError if two runs of local training give different values or sums."""
    agree("local training", expected, a.updated, b.updated)
    agree("observe()", expected, a.sums, b.sums)


def client_updates(updates: ClientUpdates, k: int) -> ClientUpdates:
    """The updates of the k-th client alone."""
    here = slice(k, k + 1)
    parts: dict[str, Any] = {
        name: rows(getattr(updates, name), here) for name in ("received", "updated", "sums", "gradient")
    }
    parts |= {name: getattr(updates, name)[here] for name in ("clients", "num_samples", "steps", "loss")}
    return dataclasses.replace(updates, **parts)


@check("run")
def params_are_declared(case: Case) -> None:
    """params() returns {name: Param}, the same in every process; `rows` returns a row for each client."""
    hook = describe(case.method.params).rpartition(": ")[2]
    task_ = task()
    torch.manual_seed(1)
    first = case.method.params(task_)
    torch.manual_seed(2)
    again = case.method.params(task_)
    if not isinstance(first, dict) or not (first or case.method.reads_text):  # zero-shot CLIP has no values
        raise ContractError(hook, "a dict {name: Param(...)}", repr(first))
    for name, param in first.items():
        where = f"{hook} {name!r}"
        if not isinstance(param, Param) or not isinstance(param.init, Tensor):
            raise ContractError(where, "Param(tensor, home)", repr(param))
        if param.home not in ("shared", "local", "server", "server_only"):
            raise ContractError(where, "home shared, local, server or server_only", repr(param.home))
        if param.rows and param.home != "local":
            raise ContractError(where, "rows with home local only", f"home {param.home}")
        if param.rows is not None:
            values = param.rows(torch.arange(CLIENTS))
            right_shape = values.shape == (CLIENTS, *param.init.shape)
            if not right_shape or not torch.equal(values[3:4], param.rows(torch.tensor([3]))):
                raise ContractError(
                    f"{where}, rows",
                    f"clients [K] -> [K, {', '.join(map(str, param.init.shape))}], each row dependent on its client alone",
                    f"{list(values.shape)} for {CLIENTS} clients"
                    + (", but another row for client 3 alone" if right_shape else ""),
                )
        if not torch.equal(param.init, again[name].init):
            raise ContractError(
                where,
                "the same initial value in every process (draw it with task.normal, task.uniform or task.prompt_init)",
                "another value at each call",
            )


@check("round")
def loop_equals_stacked(case: Case) -> None:
    """Training one client at a time gives the same result as training all clients in one graph."""
    world = case.warmed_up()
    loop = world.round(COHORT, model=dataclasses.replace(world.model, mode="loop"))
    updates_agree("the same result one client at a time as stacked", world.round(COHORT), loop)


@check("round")
def together_equals_alone(case: Case) -> None:
    """A client gets the same result alone as with others: uneven data, momentum, weight decay, clipping, Adam."""
    for recipe in RECIPES:
        world = case.warmed_up(**recipe)
        together = world.round(COHORT)
        for k, client in enumerate(together.clients.tolist()):
            alone, with_others = world.round([client]), client_updates(together, k)
            updates_agree("the same result with other clients as alone", with_others, alone)
            for name, expected in (("num_samples", float(SIZES[client])), ("steps", float(alone.steps[0]))):
                if (value := float(getattr(with_others, name)[0])) != expected:
                    raise ContractError(f"local training, {name}", str(expected), str(value))
            agree(
                "local training", "the same loss with others as alone", {"loss": with_others.loss}, {"loss": alone.loss}
            )


@check("round")
def chunks_change_nothing(case: Case) -> None:
    """Splitting clients into chunks, or a client's batch into pieces, changes no result."""
    world = case.warmed_up()
    whole = world.round(COHORT)
    changes: tuple[dict[str, Any], ...] = ({"chunk": 3}, {"piece": 3})
    for change in changes:
        part = world.round(COHORT, **change)
        updates_agree(f"the same result in chunks ({change})", whole, part)
        if part.clients.tolist() != whole.clients.tolist():
            raise ContractError("local training", "clients in the same order", "another order")
        agree("local training", f"the same result in chunks ({change})", {"loss": whole.loss}, {"loss": part.loss})


@check("round")
def padding_has_no_effect(case: Case) -> None:
    """Images in the padding of a batch have no effect."""
    world = case.warmed_up()
    zero_padded = world.batches(COHORT)
    unused = len(world.labels) - 1  # an image of no client
    image_padded = [dataclasses.replace(b, index=np.where(b.weight > 0, b.index, unused)) for b in zero_padded]
    updates_agree(
        "no effect of padding (samples of weight 0)",
        world.round(COHORT, batches=zero_padded),
        world.round(COHORT, batches=image_padded),
    )


@check("round")
def training_changes_trained_values_only(case: Case) -> None:
    """Local training changes each value that is declared as trained, and no other."""
    world = case.warmed_up(weight_decay=0.0)
    updates = world.round(COHORT)
    for name, value in updates.updated.items():
        moved, trains = bool((value != updates.received[name]).any()), world.server.spec[name].trains
        made = case.method.upload is not None and world.server.spec[name].home == "local"  # what upload() leaves behind
        if moved != trains and not (moved and made):
            raise ContractError(
                f"params() {name!r}",
                "a change in training, since it is declared as trained" if trains else "no change in training",
                "no change: its gradient is zero" if trains else "a change",
            )


@check("run")
def statistics_reach_the_method(case: Case) -> None:
    """An aggregation's absorb() returns every statistic of the clients, with finite values."""
    if case.aggregation.absorb is None or case.method.statistics is None:
        return
    world = case.new_run()
    world.server.begin(1)
    world.report_statistics(range(CLIENTS))
    for name, value in world.server.values.items():
        if not value.isfinite().all():
            raise ContractError(f"{name!r} after absorb()", "finite numbers", "infinite or not a number")


@check("run")
def measures_are_numbers(case: Case) -> None:
    """measures() returns numbers, or None, for columns that no record has, before and after a round."""
    if case.aggregation.measures is None:
        return
    clients = ClientsConfig(number=CLIENTS, per_round=len(COHORT))
    blocks: dict[str, Any] = {name: {"name": "none"} for name in ("dataset", "partition", "method")}
    run = RunConfig(**blocks, clients=clients, rounds=ROUNDS).model_dump()
    for world in (case.new_run(), case.warmed_up()):
        world.server.measures(run)


@check("merge")
def uploads_are_decoded_by_the_server(case: Case) -> None:
    """decode() returns every aggregated value from what encode() sends, whatever clients are encoded together."""
    world = case.warmed_up().copy()
    updates, server = world.round(COHORT), world.server
    if case.aggregation.encode is None:
        return
    message, kept = server.message(updates)
    for name, value in server.uploaded(updates).updated.items():
        if not value.isfinite().all():
            raise ContractError(f"encode() and decode(), {name!r}", "finite numbers", "infinite or not a number")
    server.mode = "loop"
    for stacked, alone in zip((message, kept), server.message(updates), strict=True):
        agree("encode()", "the same result one client at a time as stacked", stacked, alone)
    memory = local_values(world, updates.clients.cpu())
    agree("encode()", "local values that the client keeps", kept, {name: memory[name] for name in kept})


@check("merge")
def absent_clients_are_untouched(case: Case) -> None:
    """A round leaves the values of absent clients as they were, and all values finite."""
    world = case.warmed_up().copy()
    absent = torch.tensor([k for k in range(CLIENTS) if k not in COHORT])
    before = local_values(world, absent)
    world.server.merge(world.round(COHORT))
    after = local_values(world, absent)
    for name, value in before.items():
        if not torch.equal(after[name], value):
            raise ContractError(f"merge(), {name!r}", "no change for clients that did not take part", "a change")
    for name, value in [*world.server.values.items(), *local_values(world, torch.arange(CLIENTS)).items()]:
        if not value.isfinite().all():
            raise ContractError(f"{name!r} after two rounds", "finite numbers", "infinite or not a number")


def local_values(world: MiniRun, clients: Tensor) -> dict[str, Tensor]:
    """The local values of the clients [K], {name: [K, ...]}."""
    return world.server.memory.read(clients)


@check("run")
def bytes_equal_serialised_bytes(case: Case) -> None:
    """The counted bytes of a client's round equal the bytes of its tensors in safetensors files, without headers."""
    world = case.warmed_up(dtype=torch.float32)
    server = world.server
    up, down = server.bytes_per_client()
    received = server.send(torch.tensor([2]))
    shared = {name: received[name] for name, param in server.spec.items() if param.home == "shared"}
    made = server.generated(torch.tensor([2]))
    shared |= made
    untrained = {name: value for name, value in made.items() if not server.spec[name].trains}
    sent = {name: value for name, value in shared.items() if server.spec[name].sent and name not in untrained}
    _count("down", payload(sent | server.read()), down)
    _count("down, made by send()", cheapest(untrained), server.bytes_made(torch.tensor([2])))
    if not world.trainer.phases:
        return _count("up", 0, up)
    updates = world.round([2])
    back = {name: updates.updated[name] for name in shared if server.spec[name].trains}
    if message := server.message(updates)[0]:
        back = {name: value for name, value in back.items() if not server.spec[name].aggregated} | message
    _count("up", payload(back | {f"gradient.{name}": value for name, value in updates.gradient.items()}), up)
    _count("observed", cheapest(updates.sums), sum(bytes_of_sums(value) for value in updates.sums.values()))
    return None


def _count(what: str, written: int, counted: int) -> None:
    if written != counted:
        raise ContractError(f"bytes {what}", f"{counted} as counted", f"{written} as serialised")


def payload(tensors: dict[str, Tensor]) -> int:
    """Bytes of the tensors in a safetensors file, without its header."""
    if not tensors:
        return 0
    blob: bytes = save({name: value.contiguous().clone() for name, value in tensors.items()})
    header = int.from_bytes(blob[:8], "little")
    json.loads(blob[8 : 8 + header])
    return len(blob) - 8 - header


@check("run")
def bytes_of_statistics_equal_serialised_bytes(case: Case) -> None:
    """The counted bytes of statistics equal those of a client's non-zero rows, or of all rows if less, in safetensors files."""
    if case.method.statistics is None:
        return
    world = case.new_run(dtype=torch.float32)
    each = world.statistics(range(CLIENTS))
    counted = sum(bytes_of_sums(torch.stack([stats[name] for stats in each])) for name in each[0])
    written = sum(cheapest({name: value[None]}) for stats in each for name, value in stats.items())
    _count("of statistics", written, counted)


def cheapest(sums: Mapping[str, Tensor]) -> int:
    """Bytes of each client's sums as safetensors: of all rows, or of non-zero rows with their numbers if that is less."""
    total = 0
    for stacked in sums.values():
        for value in stacked:
            filled = [i for i, part in enumerate(value) if part.count_nonzero()] if value.dim() else []
            sparse = {"rows": value[filled], "at": torch.tensor(filled, dtype=torch.int32)} if value.dim() else None
            whole = payload({"all": value})
            total += whole if sparse is None else min(whole, payload(sparse))
    return total


@check("run")
def evaluation_equals_the_loop_over_samples(case: Case) -> None:
    """Accuracy from batches over all clients equals accuracy computed one sample at a time."""
    world = case.warmed_up()
    edges = ((42, 50), (0, 0), (37, 42), (50, 57), (38, 39), (40, 46))
    parts = [np.arange(*edge) for edge in edges]
    values = world.server.send(torch.arange(CLIENTS))
    batched = accuracies(world.model, values, world.server.read(), parts, chunk=10)
    prior = world.model.method.adds_prior_in_evaluation
    for k, part in enumerate(parts):
        client_values = rows(values, slice(k, k + 1)) | world.server.read()
        right = 0
        for i in part:
            index = world.model.sample_index(np.array([[i]]))
            logits = world.model.forward(client_values, index, prior).logits
            right += int(logits[0, 0].argmax() == world.model.labels[i])
        if (batched.right[k], batched.count[k]) != (right, len(part)):
            raise ContractError(
                f"evaluation of client {k}",
                f"{right} of {len(part)} correct, as one sample at a time",
                f"{batched.right[k]} of {batched.count[k]}",
            )


CHECKS = (
    params_are_declared,
    loop_equals_stacked,
    together_equals_alone,
    chunks_change_nothing,
    padding_has_no_effect,
    training_changes_trained_values_only,
    statistics_reach_the_method,
    measures_are_numbers,
    uploads_are_decoded_by_the_server,
    absent_clients_are_untouched,
    bytes_equal_serialised_bytes,
    bytes_of_statistics_equal_serialised_bytes,
    evaluation_equals_the_loop_over_samples,
)
