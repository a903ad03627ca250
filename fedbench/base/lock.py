"""One process at a time for work that all jobs of a cluster may want at once, on any file system.

The kernel's lock (flock) is given back the moment its holder dies, but some network file systems refuse it or keep it to
one host. So whoever has it, or cannot have it, also takes a claim file (see `fedbench.base.lease`), which is an atomic link
with a heartbeat and holds between hosts. Both only save work: what they guard is written aside and moved, so that two
workers at once would do the same twice and nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedbench.base.lease import claim

if sys.platform != "win32":
    import fcntl

WAIT_SECONDS = 0.2


@contextmanager
def one_at_a_time(path: Path, done: Callable[[], bool]) -> Iterator[bool]:
    """Hold the work on `path`, waiting for others; gives False where they have `done` it meanwhile. Raises OSError."""
    place = path.with_name(f".{path.name}.lock")
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "flock", "ab") as file:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        while not done():
            with claim(place) as hold:
                if hold:
                    yield not done()
                    if done():
                        hold.finish()
                    return
            time.sleep(WAIT_SECONDS)
    yield False
