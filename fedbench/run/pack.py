"""Several runs of one method trained together: the clients of all are rows of one graph, so that one pass serves them all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedbench.plan.config import RATES
from fedbench.data import Batches, Ints
from fedbench.run.local import Rates
from fedbench.run.meter import Share
from fedbench.method import Report
from fedbench.run.experiment import Training
from fedbench.run.simulation import Life, Sent, receive, send
from fedbench.run.stacked import Stacked, rows


@dataclass
class Member:
    """A run of a pack; `error` is why it left it. Its own work is done inside `around()`, as what is logged is its own."""

    life: Life
    share: Share
    leave: Callable[[], bool]
    around: Callable[[], AbstractContextManager[None]]
    error: Exception | None = None
    sent: Sent | None = None

    def send(self) -> None:
        """Ready its cohort of the next round."""
        self.sent = send(self.life.setting, self.life.done + 1)

    def receive(self, report: Report) -> None:
        """End the round."""
        assert self.sent is not None  # noqa: S101 - for the type checker
        spent = receive(self.life.setting, self.life.done + 1, self.sent, report)
        self.sent = None  # what was sent need not be kept meanwhile
        self.life.close(spent, self.leave)

    def do(self, work: Callable[..., None], *args: Any) -> None:
        """Do what is this run's alone; if it fails, the others go on."""
        with self.around(), self.share.counting():
            try:
                work(*args)
            except Exception as error:  # noqa: BLE001 - whatever it is, this run's next try alone meets it again
                self.error = error


def simulate(members: Sequence[Member]) -> None:
    """All rounds of all members, each a round further at a time, until it is over or has left with an error.

    Raises what the training of all raises.
    """
    while now := [member for member in members if member.error is None and not member.life.over]:
        for member in now:
            member.do(member.send)
        now = [member for member in now if member.sent is not None]
        trainings = [member.sent.training for member in now if member.sent is not None]
        reports = train_together(trainings, [member.share for member in now])
        for member, report in zip(now, reports, strict=True):
            member.do(member.receive, report)


def train_together(trainings: Sequence[Training], shares: Sequence[Share] = ()) -> list[Report]:
    """``[training.train() for training in trainings]`` up to rounding, in as few passes as they allow.

    Each of `shares` is told its part of the time: that of its samples.
    """
    groups: dict[Any, list[int]] = {}
    for i, training in enumerate(trainings):
        groups.setdefault(_fits_with(training), []).append(i)
    reports: dict[int, Report] = {}
    for group in groups.values():
        start = time.monotonic()
        together = [trainings[i] for i in group]
        reports |= zip(group, [together[0].train()] if len(group) == 1 else _train(together), strict=True)
        seconds, samples = time.monotonic() - start, sum(sum(training.samples) for training in together)
        for i in group if shares else ():
            shares[i].seconds += seconds * sum(trainings[i].samples) / samples
    return [reports[i] for i in range(len(trainings))]


def _fits_with(training: Training) -> Any:
    """Equal for trainings whose rows can stand below one another."""
    cohort, values = training.trainer.cohort, training.sent | training.read
    if not training.batches or cohort.method.backbone_weights is not None:  # nothing to share
        return id(training)
    images = (id(cohort.backbone), id(cohort.images), id(cohort.features), id(cohort.entering))
    inner = {name: value.shape[name in training.sent :] for name, value in values.items()}
    local, aggregation = training.trainer.local.model_copy(update=dict.fromkeys(RATES)), training.trainer.aggregation
    with_clients = aggregation.extra_loss is not None or aggregation.wants_gradient
    return (*images, cohort.method, aggregation if with_clients else None, local, *inner.items())


def _train(trainings: Sequence[Training]) -> list[Report]:
    counts = [len(training.clients) for training in trainings]
    steps = np.concatenate([_steps(training.batches[0]) for training in trainings])
    order = np.argsort(-steps, kind="stable")
    place = torch.from_numpy(order).to(trainings[0].clients.device)
    sent = {name: torch.cat([t.sent[name] for t in trainings])[place] for name in trainings[0].sent}
    read: Stacked = {
        name: torch.cat([t.read[name].expand(k, *t.read[name].shape) for t, k in zip(trainings, counts, strict=True)])[
            place
        ]
        for name in trainings[0].read
    }
    batches = [_below([t.batches[i] for t in trainings], order) for i in range(len(trainings[0].batches))]
    trainer = trainings[0].trainer
    trainer = replace(trainer, cohort=replace(trainer.cohort, several_servers=True))
    largest = max(t.lr for t in trainings)
    whole = trainer.train(sent, read, batches, largest, _rates(trainings, largest, counts, place))
    back = torch.argsort(whole.clients)  # `_below` calls the rows by their number
    ends = np.cumsum(counts)
    return [
        _part(whole, back[end - k : end], training) for training, k, end in zip(trainings, counts, ends, strict=True)
    ]


def _rates(trainings: Sequence[Training], largest: float, counts: Sequence[int], place: Tensor) -> Rates | None:
    """Those of all rows in their places; None where they are the same for all."""
    own = [(t.lr / largest, math.inf if t.trainer.local.clip is None else t.trainer.local.clip) for t in trainings]
    if len(set(own)) == 1:
        return None
    lr, clip = (
        torch.tensor(own, dtype=torch.float64, device=place.device)
        .repeat_interleave(torch.tensor(counts, device=place.device), 0)[place]
        .T
    )
    return Rates(lr, clip)


def _steps(batches: Batches) -> Ints:
    """How many steps each client takes [K]."""
    return np.array([sum(active > row for active in batches.active) for row in range(len(batches.clients))])


def _below(parts: Sequence[Batches], order: Ints) -> Batches:
    """The clients of all `parts` as one cohort's, in this order, called by the number of their row before it."""
    longest = max(len(part.active) for part in parts)

    def joined(name: str, mode: Any = "constant") -> Any:
        arrays = [getattr(part, name) for part in parts]
        fill = [[(0, longest - len(array)), *[(0, 0)] * (array.ndim - 1)] for array in arrays]
        return np.concatenate([np.pad(a, f, mode=mode) for a, f in zip(arrays, fill, strict=True)], 1)[:, order]

    active = tuple(sum(part.active[step] for part in parts if step < len(part.active)) for step in range(longest))
    return Batches(order, joined("index", "edge"), joined("weight"), joined("flip"), joined("shift"), active)


def _part(whole: Report, mine: Tensor, training: Training) -> Report:
    """What the rows `mine` of the report bring back to their own server."""
    return replace(
        whole,
        clients=training.clients,
        sent=training.sent,
        got=rows(whole.got, mine),
        seen=rows(whole.seen, mine),
        gradient=rows(whole.gradient, mine),
        weight=whole.weight[mine],
        steps=whole.steps[mine],
        loss=whole.loss[mine],
        lr=training.lr,
    )
