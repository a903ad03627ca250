"""Arrays that are made once and then mapped from disk, however many jobs want them at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbench.base.lease import owner_of
from fedbench.base.lock import one_at_a_time
from fedbench.base.processes import alive, process
from fedbench.data import DataError

FORMAT = 2  # raise it whenever what is in a folder changes: caches of another format are made again
CONTENTS = "contents.json"  # {format, arrays: {name: [dtype, shape, sha256]}, notes}, written last
TRIES = 3  # somebody may break a cache between its writing and its reading
OWNER = "owner.json"  # whose unfinished work a folder is

Build = Callable[[Path], Mapping[str, Any] | None]


def cached_arrays(folder: Path, build: Build, resumes: bool = False) -> dict[str, NDArray[Any]]:
    """The arrays in `folder`, {file name without .npy: read-only memory map}; made by `build` if they are not there.

    `build` gets a folder of its own, saves .npy files in it (`numpy.lib.format.open_memmap` for what is larger than
    memory) and may return notes about them (see `notes`). That folder is then renamed to `folder`, so nobody ever sees
    half of it; a `folder` that was damaged later or is of another format is replaced. Jobs that come meanwhile wait for
    the first. `folder` must be named after everything that changes the arrays. A build that fails leaves nothing; with
    `resumes`, one that was killed or interrupted leaves its folder to the next, who finds in it what was there. Raises
    DataError where nothing can be written; what `build` raises goes through.
    """
    found: list[dict[str, NDArray[Any]]] = []  # what was mapped stays whole, whatever becomes of the folder

    def done() -> bool:
        if not found and (arrays := read(folder)) is not None:
            found.append(arrays)
        return bool(found)

    try:
        for _ in range(TRIES):
            if done():
                return found[0]
            folder.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder, done) as mine:
                if mine:
                    _make(folder, build, resumes)
                    done()
    except OSError as error:
        raise DataError(f"{folder}: this cache cannot be written ({error})") from error
    if not done():
        raise DataError(f"{folder}: this cache was made, but cannot be read back, {TRIES} times in a row")
    return found[0]


def notes(folder: Path) -> dict[str, Any]:
    """What the build said about the arrays of a cache ({} where there is none)."""
    contents = _contents(folder)
    return dict(contents["notes"]) if contents else {}


def damages(folder: Path) -> list[str]:
    """What is wrong with a cache, a line each, by reading every byte of it; [] if it is as it was written."""
    contents = _contents(folder)
    if contents is None or read(folder) is None:
        return [f"{folder}: expected a cache, found none or a part of one"]
    wrong = []
    for name, (_, _, digest) in contents["arrays"].items():
        found = _sha256(folder / f"{name}.npy")
        if found != digest:
            wrong.append(f"{folder / name}.npy: expected sha256 {digest}, found {found}")
    return wrong


def _contents(folder: Path) -> dict[str, Any] | None:
    try:
        contents = json.loads((folder / CONTENTS).read_text())
        return contents if contents["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays, or None where they are missing or, as far as their sizes tell, not what was written."""
    contents = _contents(folder)
    if contents is None:
        return None
    try:
        listed = contents["arrays"]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in listed}
        whole = all([array.dtype.str, list(array.shape)] == listed[name][:2] for name, array in arrays.items())
    except (OSError, ValueError, AttributeError, TypeError, KeyError, EOFError):
        return None  # the length of each file is checked by mapping it
    return arrays if whole else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(folder: Path, build: Build, resumes: bool) -> None:
    # Not tempfile.mkdtemp: its folders are for one user only, and data folders are often shared by a group.
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    keep = False
    fresh = aside.with_suffix(".new")
    try:
        _take_over(folder, fresh if resumes else None)
        fresh.mkdir(exist_ok=True)
        (fresh / OWNER).write_text(json.dumps(asdict(process())))
        fresh.rename(aside)  # from now on others see it, and see whose it is
        told = build(aside)
        arrays = {}
        for path in sorted(aside.glob("*.npy")):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            arrays[path.stem] = [array.dtype.str, list(array.shape), _sha256(path)]
        for path in aside.iterdir():
            if path.suffix != ".npy" and path.name != OWNER:  # what a build needs to go on after an interruption
                path.unlink()
        (aside / CONTENTS).write_text(json.dumps({"format": FORMAT, "arrays": arrays, "notes": dict(told or {})}))
        for path in aside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # else a power cut after the rename could leave a whole name on half a file
        if read(folder) is None:  # without a lock another job may have been faster: then its arrays stay
            damaged = aside.with_suffix(".old")
            with suppress(OSError):  # a folder cannot be renamed onto another that has files
                os.replace(folder, damaged)
            with suppress(OSError):
                os.replace(aside, folder)
                (folder / OWNER).unlink()  # not before: what has no owner is anybody's
            shutil.rmtree(damaged, ignore_errors=True)
    except BaseException as error:
        keep = resumes and not isinstance(error, Exception)  # Ctrl-C: the next goes on
        if keep:
            (aside / OWNER).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not keep:
            shutil.rmtree(aside, ignore_errors=True)


def _take_over(folder: Path, fresh: Path | None) -> None:
    """Rename an unfinished folder that a dead process left to `fresh`, and remove all others of the dead."""
    for left in sorted(folder.parent.glob(f".{folder.name}.*.tmp")):
        owner = owner_of(left / OWNER)
        if owner is not None and owner.host == process().host and alive(owner):
            continue  # works without a lock beside us
        if fresh is not None and not fresh.exists():
            with suppress(OSError):  # somebody else was faster
                left.rename(fresh)
        else:
            shutil.rmtree(left, ignore_errors=True)
