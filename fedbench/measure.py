"""What a clock, a memory counter and git say about a run; the only numbers that differ between two executions of it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch


class Meter:
    """Seconds, images and peak memory of a run, going on from `seconds` spent before it was interrupted."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self.device, self.before = device, seconds
        self.start = self.marked = time.monotonic()
        self.images = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def count(self, images: int) -> None:
        """Add training images."""
        self.images += images

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, all its executions together."""
        return self.before + time.monotonic() - self.start

    @property
    def rate(self) -> float:
        """Training images per second of this execution, evaluation time included."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def mark(self) -> None:
        """Remember now."""
        self.marked = time.monotonic()

    def since_mark(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self.marked

    def read(self) -> dict[str, float | int]:
        """The measured part of a record; peak memory is the process's (the device's on a GPU)."""
        if self.device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self.device))
        else:
            unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kibibytes
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"seconds": self.seconds, "samples_per_second": self.rate, "peak_memory_bytes": peak}


@cache
def commit() -> str | None:
    """The code's git commit, with ``+`` where the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
