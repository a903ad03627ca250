"""Shows the progress of long work: a bar on a terminal, and elsewhere, such as in a job's log, a line from time to time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_SECONDS = 15.0

Advance = Callable[[int], None]


@contextmanager
def progress(what: str, total: int, done: int = 0, unit: str = "images") -> Iterator[Advance]:
    """Yield a function that any thread calls with the amount that it has just done.

    `total`: the whole amount, 0 if unknown; `unit`: "bytes" or a noun.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total, done, unit)
        return
    middle: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    )
    bar = Progress(TextColumn("{task.description}"), BarColumn(), *middle, TimeRemainingColumn(), console=console)
    with bar:
        task = bar.add_task(what, total=total or None, completed=done)
        yield lambda more: bar.advance(task, more)


class _Lines:
    """Prints a line every LINE_SECONDS, and nothing for shorter work."""

    def __init__(self, what: str, total: int, done: int, unit: str) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.lock, self.next = threading.Lock(), time.monotonic() + LINE_SECONDS

    def __call__(self, more: int) -> None:
        with self.lock:
            self.done += more
            if time.monotonic() < self.next:
                return
            self.next = time.monotonic() + LINE_SECONDS
            of = f" of {self.total:,}" if self.total else ""
            sys.stderr.write(f"{self.what}: {self.done:,}{of} {self.unit}\n")
            sys.stderr.flush()
