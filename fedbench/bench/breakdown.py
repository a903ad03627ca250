"""Time of each part of a round: its functions are wrapped with timers from outside and contain no timing code themselves."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fedbench.base.record_schema import TotalCosts
from fedbench.bench.clock import timed
from fedbench.run import checkpoint, evaluation, simulation, stacked_model
from fedbench.run.experiment import Experiment
from fedbench.run.meter import wait

PARTS = ("data", "forward", "backward", "optimiser", "aggregation", "evaluation", "checkpoint")

# (part, module, name in it). A part counts a function's time without that of the listed functions that it calls. So the
# time of `Trainer.train` around its passes counts as the optimiser's, and that of `one_round` around training as aggregation.
TIMED: tuple[tuple[str, str, str], ...] = (
    ("data", "fedbench.run.experiment", "Experiment.train"),
    ("data", "fedbench.data", "batches"),
    ("data", "fedbench.vit.images", "Images.batch"),
    ("forward", "fedbench.run.stacked_model", "StackedModel.forward"),
    ("forward", "fedbench.run.stacked_model", "StackedModel.each"),
    ("forward", "torch.nn.functional", "cross_entropy"),
    ("backward", "torch.autograd", "grad"),
    ("backward", "torch.autograd", "backward"),
    ("optimiser", "fedbench.run.local", "Trainer.train"),
    ("aggregation", "fedbench.run.simulation", "one_round"),
    ("aggregation", "fedbench.run.server", "Server.send"),
    ("aggregation", "fedbench.run.server", "Server.merge"),
    ("evaluation", "fedbench.run.evaluation", "evaluate"),
    ("checkpoint", "fedbench.run.checkpoint", "save"),
)
WHOLE = ("evaluation", "checkpoint")  # all time inside them counts as theirs


class Stopwatch:
    """Seconds of each part. One part runs at a time: that of the innermost timed function."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict.fromkeys(PARTS, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    def turn(self, to: str | None) -> None:
        """Start the part `to` inside the running part, or end the running part if `to` is None."""
        wait(self.device)
        now = time.perf_counter()
        if self._running:
            self.parts[self._running[-1]] += now - self._since
        if to is None:
            self._running.pop()
        else:
            self._running.append(self._running[-1] if self._running and self._running[-1] in WHOLE else to)
        self._since = time.perf_counter()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A wrapper of `function` that adds its time to `part`."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            self.turn(part)
            try:
                return function(*args, **options)
            finally:
                self.turn(None)

        return call


def _in_turn(work: Callable[[Any], Any], items: Sequence[Any], device: torch.device) -> list[Any]:
    """`fedbench.vit.thread_map.thread_map` without threads, so that the parts of a round do not overlap."""
    return [work(item) for item in items]


@contextmanager
def watched(device: torch.device) -> Iterator[Stopwatch]:
    """Time all functions of `TIMED`. If another commit lacks a name, its time counts for the caller's part.

    Chunks of clients run one after another inside, so a watched round takes longer than an unwatched one.
    """
    stopwatch = Stopwatch(device)
    with ExitStack() as stack:
        if hasattr(stacked_model, "thread_map"):  # another commit may lack it
            stack.enter_context(mock.patch.object(stacked_model, "thread_map", _in_turn))
        for part, module, path in TIMED:
            *owners, name = path.split(".")
            owner: Any = importlib.import_module(module)
            for step in owners:
                owner = getattr(owner, step, None)
            if (function := getattr(owner, name, None)) is not None:
                setattr(owner, name, stopwatch.around(part, function))
                stack.callback(setattr, owner, name, function)
        yield stopwatch


def whole_round(experiment: Experiment, folder: Path, round_: int = 1) -> None:
    """A round with its evaluation and its checkpoint in `folder`, as in a run that evaluates after each round."""
    simulation.one_round(experiment, round_)
    evaluation.evaluate(experiment)
    checkpoint.save(folder, experiment.server.state(), round_, TotalCosts(0, 0, 0), 0.0)


def seconds(experiment: Experiment, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of each of `PARTS`, of the ``whole`` watched round, and ``unwatched``, of the median round without timers.

    The parts are those of the median watched round, so they add up to ``whole``.
    """
    device = experiment.model.labels.device

    def work() -> None:
        whole_round(experiment, folder)

    work()  # statistics are reported once, files are opened for the first time
    watched_rounds, plain = [], []
    for _ in range(rounds):
        plain.append(timed(work, device))
        with watched(device) as stopwatch:
            watched_rounds.append({"whole": timed(work, device), **stopwatch.parts})
    watched_rounds.sort(key=lambda parts: parts["whole"])
    return watched_rounds[len(watched_rounds) // 2] | {"unwatched": sorted(plain)[len(plain) // 2]}


def profile(experiment: Experiment, folder: Path, file: Path) -> None:
    """Profile one round with torch's profiler: a Chrome trace if `file` ends in .json, else a table of operators."""
    whole_round(experiment, folder)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if experiment.model.labels.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # Clients are trained in threads that start and end inside the round.
    threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=activities, experimental_config=threads) as profiler:
        whole_round(experiment, folder)
    if file.suffix == ".json":
        profiler.export_chrome_trace(str(file))
    else:
        order = f"self_{'cuda' if len(activities) > 1 else 'cpu'}_time_total"
        file.write_text(profiler.key_averages().table(sort_by=order, row_limit=40) + "\n")
