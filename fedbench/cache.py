"""Arrays that are made once and then mapped from disk, however many jobs want them at the same time."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbench.data import DataError

if sys.platform != "win32":
    import fcntl

CONTENTS = "contents.json"  # {name: [dtype, shape]}, written last


def cached_arrays(folder: Path, build: Callable[[Path], None]) -> dict[str, NDArray[Any]]:
    """The arrays in `folder`, {file name without .npy: read-only memory map}; made by `build` if they are not there.

    `build` gets an empty folder and saves .npy files in it (`numpy.lib.format.open_memmap` for what is larger than
    memory). That folder is then renamed to `folder`, so nobody ever sees half of it; a `folder` that was damaged later
    is replaced. Jobs that come meanwhile wait for the first. `folder` must be named after everything that changes the
    arrays. Raises DataError where nothing can be written; what `build` raises goes through.
    """
    arrays = _read(folder)
    if arrays is not None:
        return arrays
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            arrays = _read(folder)  # made while we waited?
            if arrays is None:
                _make(folder, build)
                arrays = _read(folder)
    except OSError as error:
        raise DataError(f"{folder}: this cache cannot be written ({error})") from error
    if arrays is None:
        raise DataError(f"{folder}: this cache was written, but cannot be read back")
    return arrays


def _read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays, or None where they are missing or not what was written."""
    try:
        contents = json.loads((folder / CONTENTS).read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in contents}
        whole = all([array.dtype.str, list(array.shape)] == contents[name] for name, array in arrays.items())
    except (OSError, ValueError, AttributeError, TypeError, EOFError):
        return None  # the length of each file is checked by mapping it
    return arrays if whole else None


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    # Not tempfile.mkdtemp: its folders are for one user only, and data folders are often shared by a group.
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    aside.mkdir()
    try:
        build(aside)
        contents = {}
        for path in sorted(aside.glob("*.npy")):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            contents[path.stem] = [array.dtype.str, list(array.shape)]
        (aside / CONTENTS).write_text(json.dumps(contents))
        for path in aside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # else a power cut after the rename could leave a whole name on half a file
        damaged = aside.with_suffix(".old")
        if folder.exists():
            os.replace(folder, damaged)  # a folder cannot be renamed onto another that has files
        with suppress(OSError):  # without a lock another job may have been faster: then its arrays stay
            os.replace(aside, folder)
        shutil.rmtree(damaged, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it is given back even by a job that is killed.

    Only saves work: where a file system has no locks, jobs do the same work side by side and the first rename counts.
    """
    with open(folder.with_name(f".{folder.name}.lock"), "ab") as file:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
