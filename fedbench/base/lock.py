"""Lets one process at a time do work that several jobs of a cluster may start at once, on any file system.

The kernel releases its lock (flock) when the holder dies, but some network file systems refuse it or limit it to one host.
So a process also acquires a lease (see `fedbench.base.lease`), which works between hosts. Both only save work: the guarded
files are written to a temporary file and moved, so two workers at once would do the same work twice and no harm.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedbench.base.lease import acquire

if sys.platform != "win32":
    import fcntl

WAIT_SECONDS = 0.2


@contextmanager
def one_at_a_time(path: Path, done: Callable[[], bool]) -> Iterator[bool]:
    """Wait for other processes, then hold the work on `path`. Yields False if they have `done` it. Raises OSError."""
    folder = path.with_name(f".{path.name}.lock")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "flock", "ab") as file:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        while not done():
            with acquire(folder) as lease:
                if lease:
                    yield not done()
                    if done():
                        lease.remove_claims()
                    return
            time.sleep(WAIT_SECONDS)
    yield False
