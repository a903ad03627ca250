"""The rounds of a run: draw a cohort, send, train, merge, evaluate. Read this file first."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from pyarrow import parquet

from fedbench.base.record_schema import Record, RoundCosts, TotalCosts
from fedbench.base.records import RunFolder, record_line
from fedbench.base.run_files import checksum
from fedbench.base.storage import write_atomically
from fedbench.data import Ints
from fedbench.method import ClientUpdates
from fedbench.plan.config import Machine, PlannedRun
from fedbench.plan.plugins import Plugins
from fedbench.plan.schedule import learning_rate
from fedbench.run import checkpoint, evaluation, extension, resume, scoring
from fedbench.run.evaluation import Evaluation
from fedbench.run.experiment import Experiment, Training, build
from fedbench.run.meter import Meter
from fedbench.run.server import bytes_of_sums
from fedbench.vit.images import sent_to


class Diverged(ArithmeticError):
    """Training produced numbers that are not finite. The message names the round."""


class Stopped(Exception):
    """The run was asked to leave its machine. The checkpoint holds all rounds so far."""


def run_rounds(
    planned: PlannedRun,
    machine: Machine,
    plugins: Plugins,
    folder: RunFolder,
    must_leave: Callable[[], bool] = lambda: False,
    halvings: int = 0,
) -> dict[str, str]:
    """Run all rounds that `folder` does not hold yet, and write their results to `folder`.

    `must_leave` is called after each round, before the round is written, and may raise. `halvings`: how often to halve the
    number of images in a pass. Returns the checksums of the written files, by name. Raises Stopped if `must_leave` returned
    True, Diverged, DataError, BackboneError, and any exception of a plug-in.
    """
    state = begin(planned, machine, plugins, folder, halvings=halvings)
    while not state.over:
        state.close(one_round(state.experiment, state.rounds_done + 1), must_leave)
    return state.written()


@dataclass(frozen=True)
class RoundResult:
    """The costs of a round and its number of training images."""

    costs: RoundCosts
    images: int


@dataclass
class RunState:
    """A run between two rounds: how many rounds are done, their total costs, and the folder they are written to."""

    experiment: Experiment
    folder: RunFolder
    meter: Meter
    checkpoint_seconds: float
    rounds_done: int
    totals: TotalCosts
    records_checksum: Any = field(default_factory=hashlib.sha256)  # of all lines of records.jsonl so far
    clients_checksum: str = ""  # of clients.parquet, once it is written

    def written(self) -> dict[str, str]:
        """SHA-256 of the run's files as it wrote them. A file on disk may have changed since."""
        clients = {resume.CLIENTS: self.clients_checksum} if self.clients_checksum else {}
        return {resume.RECORDS: self.records_checksum.hexdigest(), **clients}

    @property
    def over(self) -> bool:
        """Whether no round is left."""
        return self.rounds_done == self.experiment.run.rounds

    def close(self, result: RoundResult, must_leave: Callable[[], bool]) -> None:
        """Count one more round, evaluate if due, call `must_leave`, and write. Raises Stopped if the run must leave."""
        self.rounds_done += 1
        self.totals = _added(self.totals, result.costs)
        self.meter.count(result.images)
        due = self.over or self.rounds_done % self.experiment.run.evaluate_every == 0
        evaluated = evaluation.evaluate(self.experiment) if due else None
        more = self._measured() if due else {}
        leaving = must_leave()  # right before writing, since it also checks that this process still holds the folder
        if evaluated is not None:
            self._write(evaluated, result.costs, more)
        if self.over or leaving or self.meter.since_mark() >= self.checkpoint_seconds:
            checkpoint.save(
                self.folder.path,
                self.experiment.server.state(),
                self.rounds_done,
                self.totals,
                self.meter.seconds,
                self.written(),
            )
            self.meter.mark()
        self._tell_progress()
        if leaving and not self.over:
            raise Stopped(f"after round {self.rounds_done} of {self.experiment.run.rounds}")

    def _measured(self) -> dict[str, float | None]:
        """What the aggregation and the metric plug-ins measure."""
        run = self.experiment.run
        return self.experiment.server.measures(run.model_dump()) | scoring.measured(self.experiment)

    def _write(self, evaluated: Evaluation, costs: RoundCosts, more: Mapping[str, float | None]) -> None:
        """Add a record, and after the last round the table of clients."""
        record = Record(
            facts=self.experiment.facts,
            round=self.rounds_done,
            test=evaluated.test,
            validation=evaluated.validation,
            costs=costs,
            totals=self.totals,
            measured=self.meter.read(),
            more=more,
        )
        self.folder.append(record.as_json())
        self.records_checksum.update(record_line(record.as_json()))
        if self.over:
            content = io.BytesIO()
            parquet.write_table(evaluated.clients, content)
            write_atomically(self.folder.path / resume.CLIENTS, content.getvalue())
            self.clients_checksum = hashlib.sha256(content.getvalue()).hexdigest()

    def _tell_progress(self) -> None:
        with suppress(OSError):  # progress is for display only
            self.folder.report_progress(
                round=self.rounds_done,
                rounds=self.experiment.run.rounds,
                time=time.time(),
                images_per_second=self.meter.rate,
                seconds=self.meter.seconds,
                device=self.meter.device.type,
            )


def begin(
    planned: PlannedRun,
    machine: Machine,
    plugins: Plugins,
    folder: RunFolder,
    clock: Callable[[], float] = time.monotonic,
    halvings: int = 0,
) -> RunState:
    """The run as its newest fitting checkpoint left it, or as a shorter run that it continues ended.

    `clock` counts its seconds. Raises what `build` raises.
    """
    experiment = build(planned, machine, plugins, halvings)
    totals, rounds_done, seconds = TotalCosts(0, 0, 0), 0, 0.0
    saved = resume.fitting_checkpoint(folder, planned.run)
    if saved is None:
        folder.cut_records(0)
        saved = extension.continue_shorter_run(experiment, planned, folder)
    if saved is not None:
        experiment.server.restore(saved.state)
        rounds_done, totals, seconds = saved.round, saved.totals, saved.seconds
    records = hashlib.sha256(b"".join(folder.cut_records(rounds_done)))
    meter = Meter(experiment.model.labels.device, seconds, clock)
    state = RunState(experiment, folder, meter, machine.checkpoint_seconds, rounds_done, totals, records)
    if state.over:  # the checkpoint fits, so the file is whole
        state.clients_checksum = checksum(folder.path / resume.CLIENTS)
    return state


def one_round(experiment: Experiment, round_: int) -> RoundResult:
    """One round of federated training. Raises Diverged."""
    sent = send(experiment, round_)
    return receive(experiment, round_, sent, sent.training.train())


@dataclass(frozen=True)
class SentRound:
    """A round before training: the cohort has received all that it needs."""

    training: Training
    cohort: Ints
    new: Ints  # the clients of the cohort that take part for the first time
    statistics_bytes: int  # which the new clients sent
    drawn: Ints  # the clients that received values, those that dropped out among them


def send(experiment: Experiment, round_: int) -> SentRound:
    """Draw the cohort of round `round_` (from 1), collect its statistics, and send it its starting values."""
    drawn = experiment.cohort_of(round_)
    cohort = experiment.participation.remaining(round_, drawn)
    experiment.server.begin(round_)
    taken_part = experiment.server.has_taken_part
    new = cohort[~taken_part.numpy()[cohort]]
    statistics_bytes = collect_statistics(experiment, new)
    taken_part[new] = True
    lr = learning_rate(experiment.run.local, experiment.run.rounds, round_)
    passes = experiment.participation.epochs(round_, cohort)
    return SentRound(experiment.prepare(cohort, lr, round_, passes=passes), cohort, new, statistics_bytes, drawn)


def receive(experiment: Experiment, round_: int, sent: SentRound, updates: ClientUpdates) -> RoundResult:
    """Merge the cohort's updates, and count what the round cost. Raises Diverged.

    A method that trains nothing needs the network only in a client's first round: the client's statistics go up once, and
    the classifier comes down once. Cached features cost each client one pass over its images, in its first round as well.
    """
    server, run = experiment.server, experiment.run
    finite, loss = _read_back(updates)
    if not finite:
        raise Diverged(
            f"training produced numbers that are not finite in round {round_} of {run.rounds} (lr {sent.training.lr:g})"
        )
    # Counted before the merge, which may change shapes. Data that lie in one place are not sent.
    trains, centralized = bool(sent.training.batches), experiment.model.method.centralized
    senders, receivers = (len(sent.cohort), sent.drawn) if trains else (len(sent.new), sent.new)
    up, down = (0, 0) if centralized else server.bytes_per_client()
    made = 0 if centralized else server.bytes_made(torch.from_numpy(receivers))
    server.merge(updates)
    if server.last_loss is not None:
        server.last_loss[updates.clients.cpu()] = updates.loss.cpu()
    samples = int((sent.training.batches[0].weight > 0).sum()) if trains else 0  # of all epochs
    first_passes = int(experiment.split.train.sizes[sent.new].sum())
    cost = experiment.image_cost
    costs = RoundCosts(
        train_loss=_finite(loss),
        bytes_up=up * senders + sum(map(bytes_of_sums, updates.sums.values())) + sent.statistics_bytes,
        bytes_down=down * len(receivers) + made,
        multiply_adds=samples * cost.training
        + first_passes * cost.features
        + (int(updates.steps.sum()) * cost.text if cost.text else 0)
        + len(sent.cohort) * cost.fixed_text
        + sum(sent.training.samples) * cost.choosing,
    )
    return RoundResult(costs, images=samples * len(experiment.trainer.phases))


def collect_statistics(experiment: Experiment, new: Ints) -> int:
    """Let the clients `new`, which take part for the first time, report their statistics; returns the bytes that they send."""
    model, server = experiment.model, experiment.server
    if model.method.statistics is None or not len(new) or model.features is None:
        return 0
    reported = []
    for k in new:
        samples = sent_to(model.labels.device, experiment.split.train[k])
        reported.append(server.statistics(model.features[samples], model.labels[samples]))
    stacked = {name: torch.stack([stats[name] for stats in reported]) for name in reported[0]}
    server.absorb(stacked)
    return sum(map(bytes_of_sums, stacked.values()))


def _read_back(updates: ClientUpdates) -> tuple[bool, float]:
    """Whether all values are finite, and the mean loss over samples; read from the device at once."""
    n = updates.num_samples
    values = [value for value in (*updates.updated.values(), *updates.sums.values()) if value.is_floating_point()]
    finite = torch.stack([value.isfinite().all() for value in values]).all() if values else torch.ones_like(n[0])
    is_finite, loss = torch.stack([finite.to(n), (updates.loss * n).sum() / n.sum()]).tolist()
    return bool(is_finite), loss


def _added(totals: TotalCosts, costs: RoundCosts) -> TotalCosts:
    return TotalCosts(
        total_bytes_up=totals.total_bytes_up + costs.bytes_up,
        total_bytes_down=totals.total_bytes_down + costs.bytes_down,
        total_multiply_adds=totals.total_multiply_adds + costs.multiply_adds,
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
