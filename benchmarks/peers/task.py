"""The inputs and outputs of every system. Imports nothing of fedbench, so that it runs in the peers' environment.

A task is a folder: `case.json` (method, architecture and numbers), `data.npz` (images, labels, is_test, user, class_names as
fedbench's `npz` dataset wants them), `task.npz` (cohorts, batches, test sets, initial values) and `weights.safetensors`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALUES = ("prompt", "head.weight", "head.bias")  # the trained values of FedVPT, as every system names them
CONTEXT = ("context",)  # those of PromptFL
EVALUATION_BATCH = 64  # images in one pass of an evaluation, where a system can choose

Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Task:
    """A run, drawn in advance.

    `images` uint8 [N, S, S, 3], `labels` [N]; `cohort` [R, K]; `order` [R, K, M]: the samples of the k-th client of round r
    in the order of use, padded with -1; `test` [T]: the samples of all clients' test sets, one after the
    other; `start`: initial values by name.
    """

    case: Mapping[str, Any]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cohort: NDArray[np.int64]
    order: NDArray[np.int64]
    test: NDArray[np.int64]
    test_sizes: NDArray[np.int64]  # [clients]
    start: Values
    weights: Path

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read the folder `folder`."""
        with np.load(folder / "data.npz") as data, np.load(folder / "task.npz") as task:
            return cls(
                json.loads((folder / "case.json").read_text()),
                data["images"],
                data["labels"],
                task["cohort"],
                task["order"],
                task["test"],
                task["test_sizes"],
                {name: task[name] for name in (*VALUES, *CONTEXT) if name in task},
                folder / "weights.safetensors",
            )

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.order)

    def evaluates(self, round_: int) -> bool:
        """Whether an evaluation follows round `round_`, counted from 0."""
        return (round_ + 1) % int(self.case["evaluate_every"]) == 0

    def samples(self, round_: int, row: int) -> NDArray[np.int64]:
        """The training samples of the client in `row` of the cohort, in order."""
        row_samples: NDArray[np.int64] = self.order[round_, row]
        taken: NDArray[np.int64] = row_samples[row_samples >= 0]
        return taken

    def batches(self, round_: int, row: int) -> list[NDArray[np.int64]]:
        """The training samples in batches; the last may be smaller."""
        samples, size = self.samples(round_, row), int(self.case["batch"])
        return [samples[i : i + size] for i in range(0, len(samples), size)]

    @property
    def test_sets(self) -> list[NDArray[np.int64]]:
        """The test samples of each client."""
        return np.split(self.test, np.cumsum(self.test_sizes)[:-1])


@dataclass
class Log:
    """A system's log of its run, in seconds of a clock that all processes of the machine share."""

    first_step: float | None = None  # the start of the first batch
    rounds: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    round_processor: list[float] = field(default_factory=list)  # processor time of this process, all threads
    processor: float = 0.0  # the same of the whole process, with its imports
    right: list[int] = field(default_factory=list)  # right answers on all test sets, of each evaluation
    versions: dict[str, str] = field(default_factory=dict)

    def step(self, when: float | None = None) -> None:
        """A training step starts now, or at the time `when`. Only the first step counts."""
        if self.first_step is None:
            self.first_step = time.monotonic() if when is None else when

    @contextmanager
    def round(self) -> Iterator[None]:
        """Times sending, local training and aggregation."""
        start, processor = time.monotonic(), time.process_time()
        yield
        self.rounds.append(time.monotonic() - start)
        self.round_processor.append(time.process_time() - processor)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Times an evaluation."""
        start = time.monotonic()
        yield
        self.evaluations.append(time.monotonic() - start)

    def write(self, out: Path, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Write the log to OUT.json and the final `values` to OUT.npz."""
        self.processor = time.process_time()
        out.with_suffix(".json").write_text(json.dumps(asdict(self)))
        arrays: dict[str, Any] = dict(values)
        np.savez(out.with_suffix(".npz"), **arrays)


def mean_of(updates: list[tuple[int, Values]]) -> Values:
    """FedAvg: the mean of the clients' values, weighted by their number of samples, summed in float64."""
    total = sum(n for n, _ in updates)
    return {
        name: np.sum([values[name].astype(np.float64) * (n / total) for n, values in updates], axis=0).astype(
            np.float32
        )
        for name in updates[0][1]
    }
