"""What a clock, a memory counter and git say about a run; the only numbers that differ between two executions of it."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench.base.home import INSTALLED, PACKAGE, ROOT

if TYPE_CHECKING:
    import torch


class Meter:
    """Seconds, images and peak memory of a run, going on from `seconds` spent before it was interrupted."""

    def __init__(self, device: torch.device, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.device, self.before, self.clock = device, seconds, clock
        self.start, self.marked = clock(), time.monotonic()
        self.images = 0
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)

    def count(self, images: int) -> None:
        """Add training images."""
        self.images += images

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, all its executions together."""
        return self.before + self.clock() - self.start

    @property
    def rate(self) -> float:
        """Training images per second of this execution, evaluation time included."""
        return self.images / max(self.clock() - self.start, 1e-9)

    def mark(self) -> None:
        """Remember now."""
        self.marked = time.monotonic()

    def since_mark(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self.marked

    def read(self) -> dict[str, float | int]:
        """The measured part of a record; peak memory is the process's (the device's on a GPU)."""
        if self.device.type == "cuda":
            import torch

            peak = int(torch.cuda.max_memory_allocated(self.device))
        else:
            unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kibibytes
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"seconds": self.seconds, "samples_per_second": self.rate, "peak_memory_bytes": peak}


class Share:
    """A clock that counts the part of the time that is one run's, of several that a process does together."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.since: float | None = None

    def __call__(self) -> float:
        """Seconds so far."""
        return self.seconds + (0.0 if self.since is None else time.monotonic() - self.since)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """All of the time meanwhile is this run's."""
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.seconds, self.since = self(), None


@cache
def commit() -> str | None:
    """The code's git commit, with ``+`` where the tree differs from it; None outside a checkout."""
    if INSTALLED:
        return None  # the folder it was installed to may lie in a repository of something else
    # Without locks: many jobs ask at once, may be killed meanwhile, and the checkout is the user's.
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


# The wing that reads records and makes reports of them.
WING = (
    "tables",
    "figures",
    "page",
    "report",
    "figures_cli",
    "evidence",
    "asked",
    "forks",
    "statistics",
    "reference",
    "naming",
    "leavings",
)
# Modules of fedbench that start, watch and tell of runs and change no number of theirs.
AROUND = (
    *(
        "sweep",
        "watch",
        "launch",
        "slurm",
        "keeper",
        "job",
        "environment",
        "track",
        "failures",
        "data_cli",
        "methods",
        "reference_pages",
        "check",
        "contract",
    ),
    *WING,
    *("split_view", "split_figure", "bench"),
    *("home", "_home", "__main__", "status", "completion", "pipe"),
)


@cache
def code(plugin_files: tuple[Path, ...] = ()) -> str:
    """``<core>-<plug-ins>``, 8 hex digits each, of the source that makes a run's numbers: the package, and `plugin_files`.

    A commit says nothing of changes that are not committed, nor of a user's own plug-ins.
    """
    sources = [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in PACKAGE.rglob("*.py")]
    core = [path for name, path in sources if name not in AROUND]
    return f"{_hash(core)}-{_hash(plugin_files)}"


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
