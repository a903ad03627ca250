"""Decodes a list of image files into one array on disk, on all cores, and resumes after an interruption.

Memory holds only the images being decoded. Pixels are written through a file handle into previously allocated space,
so a full disk gives an error message and no crash. A row is noted as done only after its pixels are on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbench.base.progress import progress
from fedbench.base.storage import write_atomically
from fedbench.data import DataError
from fedbench.sources.archive import Read, Source
from fedbench.sources.decode import square

log = logging.getLogger("fedbench")

SAFE_EVERY = 2048  # an interruption loses at most this many decoded images
SHOWN = 20  # unreadable images that a message names


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(
    sources: Sequence[Source],
    files: Sequence[tuple[int, str]],
    key: Callable[[str], str],
    size: int,
    skip: float,
    aside: Path,
) -> list[str]:
    """Write images.npy uint8 [n, size, size, 3] and kept.npy [n], the place of each image in `files`, to the folder `aside`.

    `files` are (number of the source, key of the name in it); a file may be listed more than once. Images that are missing or
    cannot be read are left out, up to the share `skip` of all; the last images then take their places. Returns a line for each
    image left out. Raises DataError with the list if there are more, OSError if the disk is full.
    """
    work = _Work(files, size, aside)
    for number, source in enumerate(sources):
        todo: dict[str, list[int]] = {}
        for row, (at, name) in enumerate(files):
            if at == number and not work.done[row]:
                todo.setdefault(name, []).append(row)
        work.decode(source, todo, key)
    skipped = [f"{files[row][1]}: {reason}" for row, reason in sorted(work.wrong.items())]
    if len(skipped) > skip * len(files):
        more = ""
        if len(skipped) > SHOWN:
            whole = aside.with_name(f"{aside.name.strip('.')}.unreadable.txt")
            write_atomically(whole, ("\n".join(skipped) + "\n").encode(errors="surrogateescape"))
            more = f"\n  and {len(skipped) - SHOWN} more, all in {whole}"
        where = ", ".join(str(source.path) for source in sources)
        raise DataError(
            f"{where}: {len(skipped)} of {len(files)} images cannot be used, more than the share of {skip:g} that may be "
            f"left out (skip):\n  " + "\n  ".join(skipped[:SHOWN]) + more
        )
    work.close()
    if skipped:
        log.warning("%d of %d images are left out (skip), for example %s", len(skipped), len(files), skipped[0])
    return skipped


class _Work:
    """The unfinished array in `aside`, with the rows that an earlier attempt decoded."""

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
        if hasattr(os, "posix_fallocate"):  # a full disk is noticed now and not after hours
            os.posix_fallocate(self.file, 0, self.images.stat().st_size)
        self._note()
        self.plan.write_text(plan)

    def _open(self) -> None:
        self.offset: int = np.load(self.images, mmap_mode="r").offset
        self.file = os.open(self.images, os.O_RDWR)

    def _note(self) -> None:
        """Write the pixels to disk, then the list of rows that are done."""
        done = self.done.tobytes()
        os.fsync(self.file)
        write_atomically(self.notes, done)

    def decode(self, source: Source, todo: dict[str, list[int]], key: Callable[[str], str]) -> None:
        """Decode the files of one source, `todo` {key: rows}."""
        waiting: set[Future[None]] = set()
        missing, workers = dict(todo), cores()
        with (
            progress(f"decoding {source.path.name}", len(todo)) as advance,
            ThreadPoolExecutor(workers) as pool,  # Pillow releases the interpreter lock while it decodes and resizes
        ):
            try:
                unsafe = 0
                for name, read in source.stream(lambda name: key(name) in missing) if todo else ():
                    waiting.add(pool.submit(self._decode_file, missing.pop(key(name)), name, read))
                    while len(waiting) >= 4 * workers:
                        over, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        unsafe += self._finish(over, advance)
                        if unsafe >= SAFE_EVERY:
                            self._note()
                            unsafe = 0
                    if not missing:
                        break  # the rest of a large archive need not be read
                self._finish(wait(waiting).done, advance)
            finally:
                for future in waiting:
                    future.cancel()
        for rows in missing.values():
            self.wrong.update(dict.fromkeys(rows, f"not in {source.path}"))
        self._note()

    def _finish(self, over: set[Future[None]], advance: Callable[[int], None]) -> int:
        for future in over:
            future.result()
        advance(len(over))
        return len(over)

    def _decode_file(self, rows: list[int], name: str, read: Read) -> None:
        try:
            pixels = square(read(), self.size, name)
        except DataError as error:
            self.wrong.update(dict.fromkeys(rows, str(error).removeprefix(f"{name}: ")))
            return
        for row in rows:
            _write(self.file, pixels.tobytes(), self.offset + row * pixels.nbytes)
            self.done[row] = True

    def close(self) -> None:
        """Close the gaps and write kept.npy. The files needed to resume stay, unless rows have to be moved."""
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
    while content:  # a limit or a signal may cut a write short
        written = os.pwrite(file, content, at)
        content, at = content[written:], at + written


def _close_gaps(done: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The row at each place, [number done]: rows stay where they are, and the last ones fill the gaps."""
    kept = np.arange(int(done.sum()))
    gaps = np.flatnonzero(~done[: len(kept)])
    kept[gaps] = np.flatnonzero(done[len(kept) :]) + len(kept)
    return kept
