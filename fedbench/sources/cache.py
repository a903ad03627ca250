"""Arrays that are computed once and then mapped from disk, even if many jobs want them at the same time."""

from __future__ import annotations

import json
import logging
import math
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

from fedbench.base.checksums import checksum, stamp_of
from fedbench.base.lease import owner_of
from fedbench.base.lock import one_at_a_time
from fedbench.base.processes import alive, process
from fedbench.data import DataError

log = logging.getLogger("fedbench")

FORMAT = 2  # raise it whenever the content of a folder changes: caches of another format are computed again
CONTENTS = "contents.json"  # {format, arrays: {name: [dtype, shape, sha256, stamp]}, notes}, written last
TRIES = 3  # another process may damage a cache between writing and reading
OWNER = "owner.json"  # the process that works on an unfinished folder
TRUSTED_BYTES = 8 << 30  # jobs do not read a larger file again as long as its size, time and inode are unchanged
SHOWN = 20  # skipped images that a description names

Build = Callable[[Path], Mapping[str, Any] | None]


def cached_arrays(folder: Path, build: Build, resumes: bool = False) -> dict[str, NDArray[Any]]:
    """The arrays in `folder`, {file name without .npy: read-only memory map}; `build` computes them if they are missing.

    `build` gets an empty folder, saves .npy files in it (`numpy.lib.format.open_memmap` for arrays larger than memory)
    and may return notes about them (see `notes`). That folder is then renamed to `folder`, so `folder` is always whole.
    `folder` must be named after everything that changes the arrays.

    Each process compares each file with its checksum once, a file of more than `TRUSTED_BYTES` only if it was touched. A
    folder that is damaged or of another format is replaced.
    Other jobs wait for the first. A build that fails leaves no files behind. With `resumes`, a build that was
    killed or interrupted leaves its folder to the next build, which finds its files.

    Raises DataError if the folder cannot be written, and any exception of `build`.
    """
    warned = set[str]()
    intact: list[dict[str, NDArray[Any]]] = []  # mapped arrays stay valid, even if the folder is removed

    def done() -> bool:
        if not intact and (arrays := read(folder)) is not None:
            if damage := _wrong_checksums(folder, TRUSTED_BYTES):
                for line in set(damage) - warned:
                    log.warning("%s; the cache is computed again", line)
                warned.update(damage)
            else:
                intact.append(arrays)
        return bool(intact)

    try:
        for _ in range(TRIES):
            if done():
                return intact[0]
            folder.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder, done) as is_ours:
                if is_ours:
                    _make(folder, build, resumes)
                    done()
    except OSError as error:
        raise DataError(f"{folder}: this cache cannot be written ({error})") from error
    if not done():
        raise DataError(f"{folder}: this cache was written, but cannot be read back, {TRIES} times in a row")
    return intact[0]


def read(folder: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays; None if there are none, or if their types, shapes or file sizes differ from what was written."""
    contents = _contents(folder)
    if contents is None:
        return None
    try:
        listed = contents["arrays"]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in listed}
        whole = all([array.dtype.str, list(array.shape)] == listed[name][:2] for name, array in arrays.items())
    except (OSError, ValueError, AttributeError, TypeError, KeyError, EOFError):
        return None  # mapping a file checks its length
    return arrays if whole else None


def notes(folder: Path) -> dict[str, Any]:
    """The notes that the build returned about a cache; {} without a cache."""
    contents = _contents(folder)
    return dict(contents["notes"]) if contents else {}


def verify_cache(folder: Path) -> list[str]:
    """Damage to a cache, one line each; empty if no byte has changed."""
    if read(folder) is None:
        return [f"{folder}: expected a cache, found none or a part of one"]
    return _wrong_checksums(folder)


def describe_cache(folder: Path) -> list[str]:
    """The place of a cache, its size, its sources and the images it leaves out, one line each."""
    if read(folder) is None:
        return [f"cache: {folder} (not there)"]
    size = sum(path.stat().st_size for path in folder.glob("*"))
    lines = [f"cache: {folder} ({size / 1e6:,.1f} MB)"]
    about = notes(folder)
    lines += [f"  from {line}" for line in about.get("sources", [])]
    lines += [f"  {line}" for line in about.get("remarks", [])]
    if skipped := about.get("skipped"):
        lines.append(f"  {len(skipped)} images left out:")
        lines += [f"    {line}" for line in skipped[:SHOWN]]
        if len(skipped) > SHOWN:
            lines.append(f"    and {len(skipped) - SHOWN} more, all in {folder / CONTENTS}")
    return lines


def _contents(folder: Path) -> dict[str, Any] | None:
    try:
        contents = json.loads((folder / CONTENTS).read_text())
        return contents if contents["format"] == FORMAT and isinstance(contents["notes"], dict) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _wrong_checksums(folder: Path, trusted_bytes: float = math.inf) -> list[str]:
    """The arrays of a whole cache whose bytes changed.

    A file is read once per process, unless it changes on disk. A file of more than `trusted_bytes` that still has the size,
    time and inode with which it was written is not read.
    """
    contents = _contents(folder)
    wrong = []
    for name, (_, _, expected, *stamp) in (contents or {"arrays": {}})["arrays"].items():
        path = folder / f"{name}.npy"
        try:
            status = path.stat()
            if status.st_size > trusted_bytes and stamp == [list(stamp_of(status))]:
                continue
            digest = checksum(path)
        except OSError as error:  # replaced at this moment by another process
            digest = str(error)
        if digest != expected:
            wrong.append(f"{path}: expected sha256 {expected}, found {digest}")
    return wrong


def _make(folder: Path, build: Build, resumes: bool) -> None:
    """Build the arrays in a folder beside `folder`, then rename it."""
    # Not tempfile.mkdtemp: its folders are for one user only, and data folders are often shared by a group.
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    keep = False
    fresh = aside.with_suffix(".new")
    try:
        _take_over(folder, fresh if resumes else None)
        fresh.mkdir(exist_ok=True)
        (fresh / OWNER).write_text(json.dumps(asdict(process())))
        fresh.rename(aside)  # from now on, other processes see the folder and its owner
        _seal(aside, build(aside))
        _put_in_place(aside, folder)
    except BaseException as error:
        keep = resumes and not isinstance(error, Exception)  # Ctrl-C: the next build continues
        if keep:
            (aside / OWNER).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not keep:
            shutil.rmtree(aside, ignore_errors=True)


def _seal(aside: Path, about: Mapping[str, Any] | None) -> None:
    """Write the list of the arrays in `aside` with their checksums, and sync everything to disk."""
    arrays = {}
    for path in sorted(aside.glob("*.npy")):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays[path.stem] = [array.dtype.str, list(array.shape), checksum(path), stamp_of(path.stat())]
    for path in aside.iterdir():
        if path.suffix != ".npy" and path.name != OWNER:  # files that a build needs to resume
            path.unlink()
    (aside / CONTENTS).write_text(json.dumps({"format": FORMAT, "arrays": arrays, "notes": dict(about or {})}))
    for path in aside.iterdir():
        with open(path, "rb") as file:
            os.fsync(
                file.fileno()
            )  # without this, a power cut after the rename could leave a complete name with half a file


def _put_in_place(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`, unless another job was faster and its arrays are whole."""
    if read(folder) is not None and not _wrong_checksums(folder):
        return
    damaged = aside.with_suffix(".old")
    with suppress(OSError):  # a folder cannot be renamed onto another that has files
        os.replace(folder, damaged)
    with suppress(OSError):
        os.replace(aside, folder)
        (folder / OWNER).unlink()  # last: any process may remove a folder without an owner
    shutil.rmtree(damaged, ignore_errors=True)


def _take_over(folder: Path, fresh: Path | None) -> None:
    """Rename an unfinished folder of a dead process to `fresh`, and remove all others of dead processes."""
    for unfinished in sorted(folder.parent.glob(f".{folder.name}.*.tmp")):
        owner = owner_of(unfinished / OWNER)
        if owner is not None and owner.host == process().host and alive(owner):
            continue  # it is working without a lock
        if fresh is not None and not fresh.exists():
            with suppress(OSError):  # another process was faster
                unfinished.rename(fresh)
        else:
            shutil.rmtree(unfinished, ignore_errors=True)
