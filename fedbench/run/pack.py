"""Several runs trained together.

Runs that differ only in evaluation share one training. The clients of other runs of one method become rows of one graph,
which needs one pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedbench.data import Batches, Ints
from fedbench.method import ClientUpdates
from fedbench.plan.identity import CLIENT_RECIPE
from fedbench.run.client_optimizer import Recipe
from fedbench.run.experiment import Training
from fedbench.run.meter import SharedClock, wait
from fedbench.run.simulation import RunState, SentRound, receive, send
from fedbench.run.stacked import Stacked, rows


@dataclass
class Member:
    """A run of a pack. ``error``: why it left the pack. `around()` redirects the log during work for this run alone."""

    state: RunState
    clock: SharedClock
    must_leave: Callable[[], bool]
    around: Callable[[], AbstractContextManager[None]]
    error: Exception | None = None
    sent: SentRound | None = None

    def send(self) -> None:
        """Prepare the cohort of its next round."""
        self.sent = send(self.state.experiment, self.state.rounds_done + 1)

    def receive(self, updates: ClientUpdates) -> None:
        """End the round."""
        assert self.sent is not None  # noqa: S101 - for the type checker
        result = receive(self.state.experiment, self.state.rounds_done + 1, self.sent, updates)
        self.sent = None  # frees its tensors
        self.state.close(result, self.must_leave)

    def do(self, work: Callable[..., None], *args: Any) -> None:
        """Do work for this run alone. If it fails, the other runs continue."""
        with self.around(), self.clock.counting():
            try:
                work(*args)
            except Exception as error:  # noqa: BLE001 - the run's next try, alone, meets the same error and reports it
                self.error = error


def run_pack(members: Sequence[Member], stack: bool = True) -> None:
    """Run all rounds of all members, one round of each at a time, until each member is done or has left with an error.

    Without `stack`, only equal trainings are shared, so each run's numbers are exactly those that it gets alone. Members
    that are behind catch up first. Raises any exception of the common training.
    """
    while active := [member for member in members if member.error is None and not member.state.over]:
        if not stack:
            behind = min(member.state.rounds_done for member in active)
            active = [member for member in active if member.state.rounds_done == behind]
        for member in active:
            member.do(member.send)
        ready = [(member, member.sent.training) for member in active if member.sent is not None]
        updates = train_together([training for _, training in ready], [member.clock for member, _ in ready], stack)
        for (member, _), client_updates in zip(ready, updates, strict=True):
            member.do(member.receive, client_updates)


def train_together(
    trainings: Sequence[Training], clocks: Sequence[SharedClock] = (), stack: bool = True
) -> list[ClientUpdates]:
    """``[training.train() for training in trainings]``, in as few passes as they allow.

    Equal trainings are done once. With `stack`, other trainings become rows of one graph if possible, which changes the last
    bits. Each of `clocks` receives its run's share of the time, in proportion to the run's samples.
    """
    groups: dict[Any, list[int]] = {}
    for i, training in enumerate(trainings):
        groups.setdefault(_similar(training), []).append(i)
    updates: dict[int, ClientUpdates] = {}
    for group in groups.values():
        start = _idle_time(trainings[group[0]])
        copies = _copies([trainings[i] for i in group])
        distinct = [group[i] for i in sorted(set(copies))]
        updates |= zip(distinct, _train_distinct([trainings[i] for i in distinct], stack), strict=True)
        for i, first in zip(group, copies, strict=True):
            if i not in updates:
                updates[i] = _copied(updates[group[first]])
        seconds, samples = _idle_time(trainings[group[0]]) - start, sum(sum(trainings[i].samples) for i in group)
        for i in group if clocks else ():
            clocks[i].seconds += seconds * sum(trainings[i].samples) / samples
    return [updates[i] for i in range(len(trainings))]


def _copies(trainings: Sequence[Training]) -> list[int]:
    """For each of several similar trainings, the number of the first training that is equal to it.

    The host waits for a GPU once for each training that others are compared with: once in all if all are equal.
    """
    first = list(range(len(trainings)))
    left = list(first)
    while left:
        head, *left = left
        alike = [i for i in left if _same_work(trainings[head], trainings[i])]
        equal = _equal_values(trainings[head], [trainings[i] for i in alike])
        for i in (i for i, is_equal in zip(alike, equal, strict=True) if is_equal):
            first[i] = head
            left.remove(i)
    return first


def _same_work(first: Training, second: Training) -> bool:
    """Whether two similar trainings differ at most in the values that they start from."""
    sizes = [(t.recipe, t.trainer.chunk, t.trainer.piece, len(t.batches)) for t in (first, second)]
    return sizes[0] == sizes[1] and all(
        a.active == b.active and _same_arrays(a, b) for a, b in zip(first.batches, second.batches, strict=True)
    )


def _equal_values(first: Training, others: Sequence[Training]) -> list[bool]:
    """Whether each of the `others` starts from exactly the values of `first`."""

    def pairs(other: Training) -> Iterator[tuple[Tensor, Tensor]]:
        for values, other_values in ((first.received, other.received), (first.read, other.read)):
            yield from ((values[name], value) for name, value in other_values.items())

    if first.clients.device.type == "cpu":  # nothing to wait for
        return [all(torch.equal(a, b) for a, b in pairs(other)) for other in others]
    flags = [torch.stack([(a == b).all() for a, b in pairs(other)]).all() for other in others]
    return torch.stack(flags).tolist() if flags else []


def _same_arrays(first: Batches, second: Batches) -> bool:
    names = ("clients", "index", "weight", "flip", "shift")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def _copied(updates: ClientUpdates) -> ClientUpdates:
    """A copy of the updates for another server, which may change it."""

    def clones(values: Stacked) -> Stacked:
        return {name: value.clone() for name, value in values.items()}

    return replace(
        updates,
        received=clones(updates.received),
        updated=clones(updates.updated),
        sums=clones(updates.sums),
        gradient=clones(updates.gradient),
    )


def _train_distinct(trainings: Sequence[Training], stack: bool) -> list[ClientUpdates]:
    own_backbones = trainings[0].trainer.model.method.backbone_weights is not None
    if len(trainings) > 1 and stack and not own_backbones:
        return _train(trainings)
    return [training.train() for training in trainings]


def _idle_time(training: Training) -> float:
    """The time on the clock once the device is idle: a GPU still works after the calls that start its kernels return."""
    wait(training.clients.device)
    return time.monotonic()


def _similar(training: Training) -> Any:
    """A key that is equal for trainings that differ at most in their clients, batches, values and recipe."""
    model, aggregation = training.trainer.model, training.trainer.aggregation
    if not training.batches:  # there is nothing to share
        return id(training)
    images = (id(model.backbone), id(model.images), id(model.features), id(model.cached_tokens), id(model.text))
    shapes = {name: value.shape[1:] for name, value in training.received.items()}
    shapes |= {name: value.shape for name, value in training.read.items()}
    local = training.trainer.local.model_copy(update=dict.fromkeys(CLIENT_RECIPE))
    acts_on_clients = aggregation.extra_loss is not None or aggregation.wants_gradient
    return (*images, model.method, aggregation if acts_on_clients else None, local, *shapes.items())


def _train(trainings: Sequence[Training]) -> list[ClientUpdates]:
    counts = [len(training.clients) for training in trainings]
    steps = np.concatenate([_steps(training.batches[0]) for training in trainings])
    order = np.argsort(-steps, kind="stable")
    place = torch.from_numpy(order).to(trainings[0].clients.device)
    received = {name: torch.cat([t.received[name] for t in trainings])[place] for name in trainings[0].received}
    read = {name: _read_rows(trainings, name, counts)[place] for name in trainings[0].read}
    batches = [_joined([t.batches[i] for t in trainings], order) for i in range(len(trainings[0].batches))]
    trainer = trainings[0].trainer
    trainer = replace(trainer, model=replace(trainer.model, per_client_server=True))
    whole = trainer.train(received, read, batches, _recipe(trainings, counts, place))
    back = torch.argsort(whole.clients)  # `_joined` numbers the rows
    ends = np.cumsum(counts)
    return [
        _part(whole, back[end - k : end], training) for training, k, end in zip(trainings, counts, ends, strict=True)
    ]


def _read_rows(trainings: Sequence[Training], name: str, counts: Sequence[int]) -> Tensor:
    """The server's value `name` for the clients of all trainings, with a row for each client."""
    values = [training.read[name] for training in trainings]
    return torch.cat([value.expand(k, *value.shape) for value, k in zip(values, counts, strict=True)])


def _recipe(trainings: Sequence[Training], counts: Sequence[int], place: Tensor) -> Recipe:
    """One recipe for the clients of all trainings; ``place`` gives their order."""
    recipes = [training.recipe for training in trainings]
    if len({(recipe.lr, recipe.clip) for recipe in recipes}) == 1:
        return recipes[0]
    largest = max(recipe.lr for recipe in recipes)
    rates = [(recipe.lr / largest, math.inf if recipe.clip is None else recipe.clip) for recipe in recipes]
    repeats = torch.tensor(counts, device=place.device)
    share, clip = torch.tensor(rates, dtype=torch.float64, device=place.device).repeat_interleave(repeats, 0)[place].T
    return Recipe(largest, clip, share)


def _steps(batches: Batches) -> Ints:
    """The number of steps of each client, [K]."""
    return np.array([sum(active > row for active in batches.active) for row in range(len(batches.clients))])


def _joined(parts: Sequence[Batches], order: Ints) -> Batches:
    """The clients of all `parts` as one cohort in the given `order`. Client numbers are rows before that ordering."""
    longest = max(len(part.active) for part in parts)

    def joined(name: str, mode: Any = "constant") -> Any:
        arrays = [getattr(part, name) for part in parts]
        fill = [[(0, longest - len(array)), *[(0, 0)] * (array.ndim - 1)] for array in arrays]
        return np.concatenate([np.pad(a, f, mode=mode) for a, f in zip(arrays, fill, strict=True)], 1)[:, order]

    active = tuple(sum(part.active[step] for part in parts if step < len(part.active)) for step in range(longest))
    epochs = np.concatenate([part.epochs for part in parts])[order]
    return Batches(order, joined("index", "edge"), joined("weight"), joined("flip"), joined("shift"), active, epochs)


def _part(whole: ClientUpdates, index: Tensor, training: Training) -> ClientUpdates:
    """The updates of one training: the rows `index` of all."""
    return replace(
        whole,
        clients=training.clients,
        received=training.received,
        updated=rows(whole.updated, index),
        sums=rows(whole.sums, index) | training.reported,
        gradient=rows(whole.gradient, index),
        num_samples=whole.num_samples[index],
        steps=whole.steps[index],
        loss=whole.loss[index],
        lr=training.lr,
    )
