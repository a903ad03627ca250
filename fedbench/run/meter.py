"""A run's clock and memory counter. No other numbers differ between two executions of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fedbench.base.record_schema import Measured


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Seconds, images and peak memory of a run. It continues from the `seconds` spent before an interruption."""

    def __init__(self, device: torch.device, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.device, self.before, self.clock = device, seconds, clock
        self.start, self.marked = clock(), time.monotonic()
        self.images = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def count(self, images: int) -> None:
        """Add training images."""
        self.images += images

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, over all its executions."""
        return self.before + self.clock() - self.start

    @property
    def rate(self) -> float:
        """Training images per second of this execution, evaluation time included."""
        return self.images / max(self.clock() - self.start, 1e-9)

    def mark(self) -> None:
        """Remember the present moment."""
        self.marked = time.monotonic()

    def since_mark(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self.marked

    def read(self) -> Measured:
        """The measured part of a record. Peak memory is that of the process or, on a GPU, of the device."""
        if self.device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self.device))
        else:
            unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kibibytes
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return Measured(self.seconds, self.rate, peak)


class SharedClock:
    """Counts the seconds that belong to one run when a process trains several runs together."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.since: float | None = None

    def __call__(self) -> float:
        """Seconds so far."""
        return self.seconds + (0.0 if self.since is None else time.monotonic() - self.since)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """All time inside the block belongs to this run."""
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.seconds, self.since = self(), None
