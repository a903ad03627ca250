"""Decodes a list of image files into one array on disk, on all cores, and goes on where it was interrupted.

Memory holds the images in work and nothing else. Pixels are written through a file handle into space that was set aside
before, so that a full disk is an error message and not a crash; which rows are done is noted only after their pixels are
safe on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbench.base.progress import progress
from fedbench.base.storage import write_aside
from fedbench.data import DataError
from fedbench.sources.archive import Read, Source
from fedbench.sources.decode import square

SAFE_EVERY = 2048  # images between two moments after which an interruption loses nothing
SHOWN = 20  # unreadable images that a message names


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(
    sources: Sequence[Source],
    files: Sequence[tuple[int, str]],
    key: Callable[[str], str],
    size: int,
    skip: float,
    aside: Path,
) -> list[str]:
    """Write images.npy uint8 [n, size, size, 3] and kept.npy [n], the place in `files` of each; gives what is left out.

    `files` are (number of the source, key of the name in it). Images that are missing or cannot be read are left out up
    to the share `skip` of all; the last images then take their places. Raises DataError with the list where there are
    more, OSError where the disk is full.
    """
    work = _Work(files, size, aside)
    for number, source in enumerate(sources):
        todo = {name: row for row, (at, name) in enumerate(files) if at == number and not work.done[row]}
        work.decode(source, todo, key)
    skipped = [f"{files[row][1]}: {reason}" for row, reason in sorted(work.wrong.items())]
    if len(skipped) > skip * len(files):
        more = ""
        if len(skipped) > SHOWN:
            whole = aside.with_name(f"{aside.name.strip('.')}.unreadable.txt")
            write_aside(whole, ("\n".join(skipped) + "\n").encode())
            more = f"\n  and {len(skipped) - SHOWN} more, all in {whole}"
        where = ", ".join(str(source.path) for source in sources)
        raise DataError(
            f"{where}: {len(skipped)} of {len(files)} images cannot be used, more than the share of {skip:g} that may be "
            f"left out (skip):\n  " + "\n  ".join(skipped[:SHOWN]) + more
        )
    work.close()
    return skipped


class _Work:
    """The half-made array in `aside`, with what an earlier attempt has done."""

    def __init__(self, files: Sequence[tuple[int, str]], size: int, aside: Path) -> None:
        self.size, self.aside = size, aside
        self.images, self.notes, self.plan = aside / "images.npy", aside / "done.bin", aside / "plan.json"
        self.wrong: dict[int, str] = {}  # row: reason
        plan = json.dumps([size, hashlib.sha256(repr(list(files)).encode()).hexdigest()])
        with suppress(OSError, ValueError):
            if self.plan.read_text() == plan and self.notes.stat().st_size == len(files):
                self.done = np.fromfile(self.notes, dtype=np.bool_)
                self._open()
                return
        self.done = np.zeros(len(files), dtype=bool)
        shape = (len(files), size, size, 3)
        np.lib.format.open_memmap(self.images, mode="w+", dtype=np.uint8, shape=shape)
        self._open()
        if hasattr(os, "posix_fallocate"):  # says now, and not after hours, that there is no room
            os.posix_fallocate(self.file, 0, self.images.stat().st_size)
        self._note()
        self.plan.write_text(plan)

    def _open(self) -> None:
        self.offset: int = np.load(self.images, mmap_mode="r").offset
        self.file = os.open(self.images, os.O_RDWR)

    def _note(self) -> None:
        """Make sure of the pixels first, then say that they are there."""
        done = self.done.tobytes()
        os.fsync(self.file)
        write_aside(self.notes, done)

    def decode(self, source: Source, todo: dict[str, int], key: Callable[[str], str]) -> None:
        """Decode the files of one source, `todo` {key: row}."""
        waiting: set[Future[None]] = set()
        missing, workers = dict(todo), cores()
        with (
            progress(f"decoding {source.path.name}", len(todo)) as advance,
            ThreadPoolExecutor(workers) as pool,  # Pillow decodes and resizes without holding the interpreter
        ):
            try:
                since = 0
                for name, read in source.stream(lambda name: key(name) in missing) if todo else ():
                    waiting.add(pool.submit(self._one, missing.pop(key(name)), name, read))
                    while len(waiting) >= 4 * workers:
                        over, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        since += self._finish(over, advance)
                        if since >= SAFE_EVERY:
                            self._note()
                            since = 0
                    if not missing:
                        break  # the rest of a large archive need not be read
                self._finish(wait(waiting).done, advance)
            finally:
                for future in waiting:
                    future.cancel()
        for row in missing.values():
            self.wrong[row] = f"not in {source.path}"
        self._note()

    def _finish(self, over: set[Future[None]], advance: Callable[[int], None]) -> int:
        for future in over:
            future.result()
        advance(len(over))
        return len(over)

    def _one(self, row: int, name: str, read: Read) -> None:
        try:
            pixels = square(read(), self.size, name)
        except DataError as error:
            self.wrong[row] = str(error).removeprefix(f"{name}: ")
            return
        _write(self.file, pixels.tobytes(), self.offset + row * pixels.nbytes)
        self.done[row] = True

    def close(self) -> None:
        """Close the gaps, and write kept.npy. What is needed to go on stays unless rows have to be moved."""
        kept = _close_gaps(self.done)
        if len(kept) < len(self.done):
            self.plan.unlink()
        row_bytes = 3 * self.size**2
        for place in np.flatnonzero(kept != np.arange(len(kept))):
            moved = os.pread(self.file, row_bytes, self.offset + int(kept[place]) * row_bytes)
            _write(self.file, moved, self.offset + int(place) * row_bytes)
        header = io.BytesIO()
        shape = (len(kept), self.size, self.size, 3)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if len(header.getvalue()) != self.offset:
            raise DataError(f"{self.images}: a header of {self.offset} bytes was expected")
        _write(self.file, header.getvalue(), 0)
        os.ftruncate(self.file, self.offset + len(kept) * row_bytes)
        os.fsync(self.file)
        os.close(self.file)
        np.save(self.aside / "kept.npy", kept)


def _write(file: int, content: bytes, at: int) -> None:
    while content:  # a write may be cut short by a limit or a signal
        written = os.pwrite(file, content, at)
        content, at = content[written:], at + written


def _close_gaps(done: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which row comes to each place, [number done]: rows stay where they are, and the last ones fill the gaps."""
    kept = np.arange(int(done.sum()))
    gaps = np.flatnonzero(~done[: len(kept)])
    kept[gaps] = np.flatnonzero(done[len(kept) :]) + len(kept)
    return kept
