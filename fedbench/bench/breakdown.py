"""Where the seconds of a round go: the functions it is made of are timed from outside, and none of them holds a clock."""

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
from fedbench.bench.clock import timed, wait
from fedbench.run import checkpoint, evaluation, simulation, stacked_model
from fedbench.run.experiment import Experiment

PARTS = ("data", "forward", "backward", "optimiser", "aggregation", "evaluation", "checkpoint")

# (part, module, name in it): the part has the function's own time, without that of the functions it calls that are named
# here. What the trainer does around its passes is the optimiser's, what a round does around training the server's.
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
WHOLE = ("evaluation", "checkpoint")  # all that happens inside is theirs


class Stopwatch:
    """Seconds of each part, of which one at a time runs: the innermost timed function's."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict.fromkeys(PARTS, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    def turn(self, to: str | None) -> None:
        """Begin the part `to` inside the running one, or end the running one (None)."""
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
        """`function`, whose own time is the part's."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            self.turn(part)
            try:
                return function(*args, **options)
            finally:
                self.turn(None)

        return call


def _in_turn(work: Callable[[Any], Any], items: Sequence[Any], device: torch.device) -> list[Any]:
    """Like `fedbench.vit.thread_map.thread_map`, but one item after another, so that the parts of a round do not overlap."""
    return [work(item) for item in items]


@contextmanager
def watched(device: torch.device) -> Iterator[Stopwatch]:
    """All functions of `TIMED` timed; a name that another commit lacks leaves its time to the caller's part.

    Pieces of clients' work are done one after another meanwhile, so a watched round takes longer than one that is not.
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
    """A round with its evaluation and its checkpoint in `folder`, as a run has it where it evaluates each round."""
    simulation.one_round(experiment, round_)
    evaluation.evaluate(experiment)
    checkpoint.save(folder, experiment.server.state(), round_, TotalCosts(0, 0, 0), 0.0)


def seconds(experiment: Experiment, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of each of `PARTS`, their round as a ``whole``, and ``unwatched``: the median round without any clock in it.

    Of several watched rounds the median one is told, so that its parts belong together.
    """
    device = experiment.model.labels.device

    def work() -> None:
        whole_round(experiment, folder)

    work()  # statistics are reported once, files are opened for the first time
    found, plain = [], []
    for _ in range(rounds):
        plain.append(timed(work, device))
        with watched(device) as stopwatch:
            found.append({"whole": timed(work, device), **stopwatch.parts})
    found.sort(key=lambda one: one["whole"])
    return found[len(found) // 2] | {"unwatched": sorted(plain)[len(plain) // 2]}


def profile(experiment: Experiment, folder: Path, file: Path) -> None:
    """One round under torch's profiler: a Chrome trace where `file` ends in .json, else a table of operators."""
    whole_round(experiment, folder)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if experiment.model.labels.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # Clients are spread over threads, which begin and end inside the round.
    threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=activities, experimental_config=threads) as profiler:
        whole_round(experiment, folder)
    if file.suffix == ".json":
        profiler.export_chrome_trace(str(file))
    else:
        order = f"self_{'cuda' if len(activities) > 1 else 'cpu'}_time_total"
        file.write_text(profiler.key_averages().table(sort_by=order, row_limit=40) + "\n")
