"""The rounds of a run: draw a cohort, send, train, merge, evaluate. Read this file first."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyarrow import parquet
from torch import Tensor

from fedbench.run import checkpoint, evaluation, meter
from fedbench.plan.config import Machine, PlannedRun
from fedbench.data import Ints
from fedbench.method import Report
from fedbench.plan.plugins import Plugins
from fedbench.base.records import RunFolder
from fedbench.run.server import bytes_of_sums
from fedbench.run.experiment import Setting, Training, build
from fedbench.base.storage import write_aside


class Diverged(ArithmeticError):
    """Training left the finite numbers; says in which round."""


class Stopped(Exception):
    """The run was asked to leave its machine; the checkpoint holds all its rounds so far."""


def simulate(
    planned: PlannedRun, machine: Machine, found: Plugins, folder: RunFolder, leave: Callable[[], bool] = lambda: False
) -> None:
    """Run all rounds that `folder` does not hold yet; everything that a reader needs ends up in `folder`.

    `leave` is asked after each round, before anything of it is written, and may raise. Raises Stopped where it said so,
    Diverged, DataError, BackboneError, and whatever a plug-in raises.
    """
    life = begin(planned, machine, found, folder)
    while not life.over:
        life.close(one_round(life.setting, life.done + 1), leave)


@dataclass
class Life:
    """A run between two rounds: `done` of them so far, what they took in all, and where all of it is written."""

    setting: Setting
    folder: RunFolder
    facts: Mapping[str, object]
    meter: meter.Meter
    checkpoint_seconds: float
    done: int
    totals: dict[str, float]

    @property
    def over(self) -> bool:
        """Whether no round is left."""
        return self.done == self.setting.run.rounds

    def close(self, spent: dict[str, Any], leave: Callable[[], bool]) -> None:
        """Count one more round, evaluate where it is time to, ask `leave` and write. Raises Stopped where that said so."""
        run, folder, meter = self.setting.run, self.folder, self.meter
        self.done += 1
        for name in ("bytes_up", "bytes_down", "multiply_adds"):
            self.totals[name] += spent[name]
        meter.count(spent.pop("images"))
        found = evaluation.evaluate(self.setting) if self.over or self.done % run.evaluate_every == 0 else None
        stop = leave()  # only now: whether the folder is still ours is asked right before it is written to
        if found is not None:
            metrics, clients = found
            whole = {f"total_{k}": int(v) for k, v in self.totals.items() if k != "seconds"}
            folder.append({**self.facts, "round": self.done, **metrics, **spent, **whole, **meter.read()})
            if self.over:
                kept = io.BytesIO()
                parquet.write_table(clients, kept)
                write_aside(folder.path / "clients.parquet", kept.getvalue())
        self.totals["seconds"] = meter.seconds
        if self.over or stop or meter.since_mark() >= self.checkpoint_seconds:
            checkpoint.save(folder.path, self.setting.server.state(), self.done, self.totals)
            meter.mark()
        told = {"images_per_second": meter.rate, "seconds": meter.seconds, "device": meter.device.type}
        with suppress(OSError):  # nothing is lost with a word
            folder.say(round=self.done, rounds=run.rounds, time=time.time(), **told)
        if stop and not self.over:
            raise Stopped(f"after round {self.done} of {run.rounds}")


def begin(
    planned: PlannedRun,
    machine: Machine,
    found: Plugins,
    folder: RunFolder,
    clock: Callable[[], float] = time.monotonic,
) -> Life:
    """The run as its last checkpoint has it; `clock` counts its seconds. Raises DataError, BackboneError, and more."""
    setting = build(planned, machine, found)
    facts = {
        "run": folder.path.name,
        "key": planned.key,
        **setting.facts,
        "commit": meter.commit(),
        "code": meter.code(found.files(planned.identity)),
    }
    totals: dict[str, float] = {"bytes_up": 0, "bytes_down": 0, "multiply_adds": 0, "seconds": 0.0}
    done = 0
    if (saved := checkpoint.load(folder.path)) is not None:
        state, done, totals = saved
        setting.server.restore(state)
    folder.cut_records(done)
    meter = meter.Meter(setting.cohort.labels.device, totals["seconds"], clock)
    return Life(setting, folder, facts, meter, machine.checkpoint_seconds, done, totals)


def one_round(setting: Setting, round_: int) -> dict[str, Any]:
    """One round of federated training; returns what it took. Raises Diverged."""
    sent = send(setting, round_)
    return receive(setting, round_, sent, sent.training.train())


@dataclass(frozen=True)
class Sent:
    """A round whose cohort has all it needs to train."""

    training: Training
    clients: int  # in the cohort
    stats_bytes: int  # of clients that take part for the first time


def send(setting: Setting, round_: int) -> Sent:
    """Draw the cohort of round `round_` (from 1) and send it what it starts from."""
    run = setting.run
    cohort = setting.cohort_of(round_)
    stats_bytes = introduce(setting, cohort)
    lr = run.local.lr * run.local.lr_decay ** (round_ - 1)
    return Sent(setting.task(cohort, lr, round_), len(cohort), stats_bytes)


def receive(setting: Setting, round_: int, sent: Sent, report: Report) -> dict[str, Any]:
    """Merge what came back; returns what the round took. Raises Diverged."""
    server, run = setting.server, setting.run
    values = [*report.got.values(), *report.seen.values()]
    if any(not bool(v.isfinite().all()) for v in values if v.is_floating_point()):
        raise Diverged(f"training left the finite numbers in round {round_} of {run.rounds} (lr {sent.training.lr:g})")
    pooled = setting.cohort.method.pooled  # its data lie in one place: nothing is sent
    up, down = (0, 0) if pooled else server.bytes_per_client()  # of what was sent: a merge may change shapes
    server.merge(report)
    seen = sum(bytes_of_sums(value) for value in report.seen.values())
    samples = int(report.weight.sum()) * run.local.epochs
    return {
        "train_loss": _finite(weighted(report.loss, report.weight)),
        "bytes_up": up * sent.clients + seen + sent.stats_bytes,
        "bytes_down": down * sent.clients,
        "multiply_adds": samples * setting.multiply_adds,
        "images": samples * len(setting.trainer.phases),
    }


def introduce(setting: Setting, cohort: Ints) -> int:
    """Clients that take part for the first time report their statistics once; returns the bytes of that."""
    method, server = setting.cohort.method, setting.server
    new = [k for k in cohort if not server.introduced[k]]
    if method.statistics is None or not new:
        return 0
    stats = []
    for k in new:
        mine = torch.from_numpy(setting.split.train[k]).to(setting.cohort.labels.device)
        stats.append(method.statistics(server.read(), setting.cohort.features[mine], setting.cohort.labels[mine]))  # type: ignore[index]
    stacked = {name: torch.stack([s[name] for s in stats]) for name in stats[0]}
    server.absorb(stacked)
    server.introduced[new] = True
    return sum(bytes_of_sums(value) for value in stacked.values())


def weighted(value: Tensor, weight: Tensor) -> float:
    """Weighted mean as a number."""
    return float((value * weight).sum() / weight.sum())


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
