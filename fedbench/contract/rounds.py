"""Rounds of a method in the miniature world: clients are independent rows, padding is nothing, bytes are what is sent.

Every check works on a `Case`; the cohort is uneven, so that clients end at different steps.
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
from fedbench.contract.world import CLIENTS, SIZES, Case, Tiny, task, tiny
from fedbench.method import ClientUpdates, Param
from fedbench.method.hooks import describe
from fedbench.run.evaluation import accuracies
from fedbench.run.server import bytes_of_sums
from fedbench.run.stacked import rows

COHORT = (4, 0, 5, 2)  # of 9, 7, 1 and 12 samples: 6, 4, 2 and 6 batches of 4 in 2 epochs
TOLERANCE = 1e-10  # float64, a few dozen steps
RECIPES: tuple[dict[str, Any], ...] = ({}, {"optimizer": "adam", "clip": None})


def agree(made_by: str, expected: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raise ContractError where two sets of values differ by more than rounding; `made_by` says whose they are."""
    if a.keys() != b.keys():
        raise ContractError(made_by, expected, f"{sorted(a)} against {sorted(b)}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ContractError(
                f"{made_by}, {name!r}", expected, f"shape {list(a[name].shape)} against {list(b[name].shape)}"
            )
        if not a[name].is_floating_point():
            continue
        far = float((a[name] - b[name]).abs().max()) if a[name].numel() else 0.0
        if not far < TOLERANCE * max(1.0, float(a[name].abs().max()) if a[name].numel() else 0.0):
            raise ContractError(f"{made_by}, {name!r}", expected, f"a difference of {far:.2g}")


def updates_agree(expected: str, a: ClientUpdates, b: ClientUpdates) -> None:
    """Raise ContractError where what two runs of local training give is not the same."""
    agree("local training", expected, a.updated, b.updated)
    agree("observe()", expected, a.sums, b.sums)


def row(updates: ClientUpdates, k: int) -> ClientUpdates:
    """What the k-th client of a updates brings back, alone."""
    here = slice(k, k + 1)
    parts: dict[str, Any] = {
        name: rows(getattr(updates, name), here) for name in ("received", "updated", "sums", "gradient")
    }
    parts |= {name: getattr(updates, name)[here] for name in ("clients", "num_samples", "steps", "loss")}
    return dataclasses.replace(updates, **parts)


@check("run")
def params_are_declared(case: Case) -> None:
    """params() gives {name: Param}, the same in every process, with a row per client where it says so."""
    hook = describe(case.method.params).rpartition(": ")[2]
    asked = task()
    torch.manual_seed(1)
    first = case.method.params(asked)
    torch.manual_seed(2)
    again = case.method.params(asked)
    if not isinstance(first, dict) or not first:
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
            mine = param.rows(torch.arange(CLIENTS))
            if mine.shape != (CLIENTS, *param.init.shape) or not torch.equal(mine[3:4], param.rows(torch.tensor([3]))):
                raise ContractError(
                    f"{where}, rows",
                    f"clients [K] -> [K, {', '.join(map(str, param.init.shape))}], a row a function of its client alone",
                    f"{list(mine.shape)} for {CLIENTS} clients, client 3's row another one alone"
                    if mine.shape == (CLIENTS, *param.init.shape)
                    else f"{list(mine.shape)} for {CLIENTS} clients",
                )
        if not torch.equal(param.init, again[name].init):
            raise ContractError(
                where,
                "the same initial value in every process (draw it with task.normal, task.uniform or task.prompt_init)",
                "another one each time",
            )


@check("round")
def loop_equals_stacked(case: Case) -> None:
    """One client at a time ends where all clients in one graph end."""
    small = case.warmed()
    loop = small.round(COHORT, model=dataclasses.replace(small.model, mode="loop"))
    updates_agree("the same one client at a time as stacked", small.round(COHORT), loop)


@check("round")
def together_equals_alone(case: Case) -> None:
    """Each client ends where it would have ended by itself: uneven data, momentum, weight decay, clipping, Adam."""
    for recipe in RECIPES:
        small = case.warmed(**recipe)
        together = small.round(COHORT)
        for k, client in enumerate(together.clients.tolist()):
            alone, mine = small.round([client]), row(together, k)
            updates_agree("the same together with other clients as alone", mine, alone)
            for name, other in (("num_samples", float(SIZES[client])), ("steps", float(alone.steps[0]))):
                if float(getattr(mine, name)[0]) != other:
                    raise ContractError(f"local training, {name}", str(other), str(float(getattr(mine, name)[0])))
            agree("local training", "the same together as alone", {"loss": mine.loss}, {"loss": alone.loss})


@check("round")
def chunks_change_nothing(case: Case) -> None:
    """Clients in several chunks, or a client's batch in several pieces, give the same."""
    small = case.warmed()
    whole = small.round(COHORT)
    changes: tuple[dict[str, Any], ...] = ({"chunk": 3}, {"piece": 3})
    for change in changes:
        part = small.round(COHORT, **change)
        updates_agree(f"the same in chunks ({change})", whole, part)
        if part.clients.tolist() != whole.clients.tolist():
            raise ContractError("local training", "clients in the same order", "another order")
        agree("local training", f"the same in chunks ({change})", {"loss": whole.loss}, {"loss": part.loss})


@check("round")
def padding_is_nothing(case: Case) -> None:
    """Other images in the padding of a batch change nothing."""
    small = case.warmed()
    clean = small.batches(COHORT)
    stranger = len(small.labels) - 1  # an image that is nobody's
    dirty = [dataclasses.replace(b, index=np.where(b.weight > 0, b.index, stranger)) for b in clean]
    updates_agree(
        "no trace of padding (samples of weight 0)",
        small.round(COHORT, batches=clean),
        small.round(COHORT, batches=dirty),
    )


@check("round")
def what_trains_moves_and_nothing_else(case: Case) -> None:
    """Each value that is declared as trained moves in local training, and no other does."""
    small = case.warmed(weight_decay=0.0)
    updates = small.round(COHORT)
    for name, value in updates.updated.items():
        moved, trains = bool((value != updates.received[name]).any()), small.server.spec[name].trains
        if moved != trains:
            raise ContractError(
                f"params() {name!r}",
                "a value that moves, since it is declared as trained" if trains else "a value that nothing moves",
                "no change: its gradient is zero" if trains else "a change",
            )


@check("merge")
def absent_clients_are_untouched(case: Case) -> None:
    """A round leaves what it holds of other clients, and finite numbers."""
    small = case.warmed().copy()
    absent = torch.tensor([k for k in range(CLIENTS) if k not in COHORT])
    before = kept(small, absent)
    small.server.merge(small.round(COHORT))
    after = kept(small, absent)
    for name, value in before.items():
        if not torch.equal(after[name], value):
            raise ContractError(f"merge(), {name!r}", "no change for clients that did not take part", "a change")
    for name, value in [*small.server.values.items(), *kept(small, torch.arange(CLIENTS)).items()]:
        if not value.isfinite().all():
            raise ContractError(f"{name!r} after two rounds", "finite numbers", "infinite or not a number")


def kept(small: Tiny, clients: Tensor) -> dict[str, Tensor]:
    """What the clients hold themselves, {name: [K, ...]}."""
    return small.server.memory.read(clients)


@check("run")
def bytes_are_those_of_what_is_serialised(case: Case) -> None:
    """One client's round, written as safetensors: the bytes behind the header are the bytes that are counted."""
    small = case.warmed(dtype=torch.float32)
    server = small.server
    up, down = server.bytes_per_client()
    sent = server.send(torch.tensor([2]))
    shared = {name: sent[name] for name, param in server.spec.items() if param.home == "shared"}
    shared |= server.generated(torch.tensor([2]))
    _count("down", payload(shared | server.read()), down)
    if not small.trainer.phases:
        return _count("up", 0, up)
    updates = small.round([2])
    back = {name: updates.updated[name] for name in shared if server.spec[name].trains}
    _count("up", payload(back | {f"gradient.{name}": value for name, value in updates.gradient.items()}), up)
    _count("observed", cheapest(updates.sums), sum(bytes_of_sums(value) for value in updates.sums.values()))
    return None


def _count(what: str, written: int, counted: int) -> None:
    if written != counted:
        raise ContractError(f"bytes {what}", f"{counted} as counted", f"{written} as serialised")


def payload(tensors: dict[str, Tensor]) -> int:
    """Bytes of the tensors in a safetensors file, behind its header."""
    if not tensors:
        return 0
    blob: bytes = save({name: value.contiguous().clone() for name, value in tensors.items()})
    header = int.from_bytes(blob[:8], "little")
    json.loads(blob[8 : 8 + header])
    return len(blob) - 8 - header


@check("run")
def bytes_of_statistics_are_those_of_what_is_serialised(case: Case) -> None:
    """Statistics, written as safetensors: rows of classes that a client has, or all, whichever is less."""
    if case.method.statistics is None:
        return
    small = tiny(case.method, case.aggregation, dtype=torch.float32)
    each = small.statistics(range(CLIENTS))
    counted = sum(bytes_of_sums(torch.stack([stats[name] for stats in each])) for name in each[0])
    written = sum(cheapest({name: value[None]}) for stats in each for name, value in stats.items())
    _count("of statistics", written, counted)


def cheapest(sums: Mapping[str, Tensor]) -> int:
    """Each client's sums as safetensors: whole, or the rows that are not zero with their numbers, whichever is less."""
    total = 0
    for stacked in sums.values():
        for value in stacked:
            filled = [i for i, one in enumerate(value) if one.count_nonzero()] if value.dim() else []
            sparse = {"rows": value[filled], "at": torch.tensor(filled, dtype=torch.int32)} if value.dim() else None
            whole = payload({"all": value})
            total += whole if sparse is None else min(whole, payload(sparse))
    return total


@check("run")
def evaluation_equals_the_loop_over_samples(case: Case) -> None:
    """Accuracy in batches over all clients is that of one sample at a time."""
    small = case.warmed()
    edges = ((42, 50), (0, 0), (37, 42), (50, 57), (38, 39), (40, 46))
    parts = [np.arange(*edge) for edge in edges]
    values = small.server.send(torch.arange(CLIENTS))
    found = accuracies(small.model, values, small.server.read(), parts, chunk=10)
    prior = small.model.method.logit_prior in ("eval", "both")
    for k, part in enumerate(parts):
        mine = rows(values, slice(k, k + 1)) | small.server.read()
        right = 0
        for i in part:
            logits = small.model.forward(mine, torch.tensor([[i]]), prior).logits
            right += int(logits[0, 0].argmax() == small.model.labels[i])
        if (found.right[k], found.count[k]) != (right, len(part)):
            raise ContractError(
                f"evaluation of client {k}",
                f"{right} of {len(part)} right, as one sample at a time",
                f"{found.right[k]} of {found.count[k]}",
            )


CHECKS = (
    params_are_declared,
    loop_equals_stacked,
    together_equals_alone,
    chunks_change_nothing,
    padding_is_nothing,
    what_trains_moves_and_nothing_else,
    absent_clients_are_untouched,
    bytes_are_those_of_what_is_serialised,
    bytes_of_statistics_are_those_of_what_is_serialised,
    evaluation_equals_the_loop_over_samples,
)
