"""Leases on folders: a numbered claim file shows who works on a folder, so that other processes leave it alone.

Leases work on shared file systems. A process takes a number by a hard link, which is atomic on NFS too. The clocks of two
hosts are never compared, and no kernel lock is needed.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from fedbench.base import run_files
from fedbench.base.processes import Owner, alive, host, process
from fedbench.base.storage import write_atomically

log = logging.getLogger("fedbench")

HEARTBEAT_SECONDS = 10.0
# A process on another host loses its lease after missing this many heartbeats. File servers are rarely away that long.
SILENT_BEATS = 12
RELEASED = b"-"  # content of a claim file whose lease was released; an empty claim file is being written
CLAIM = re.compile(r"claim\.([0-9]+)")

_held_here: set[Path] = set()  # claim files of this process
_lock = threading.Lock()  # between making a claim file and its entry in `_held_here`


class Overtaken(RuntimeError):
    """Another process took over the folder because this process was silent for too long: frozen, or cut off from the files."""


def claim_files(folder: Path) -> list[Path]:
    """The claim files of a folder, oldest first; [] if the folder is missing. Only the last file counts."""
    try:
        return _claim_files(folder)
    except OSError:
        return []


def _claim_files(folder: Path) -> list[Path]:
    """As `claim_files`. Raises OSError if the folder is unreachable, which does not mean that nobody holds it."""
    return sorted((path for path in folder.iterdir() if CLAIM.fullmatch(path.name)), key=_number)


def last_claim(folder: Path, names: Iterator[str] | frozenset[str]) -> Path | None:
    """The claim file that counts among the files `names` of a folder."""
    paths = [folder / name for name in names if CLAIM.fullmatch(name)]
    return max(paths, key=_number, default=None)


def _number(path: Path) -> int:
    match = CLAIM.fullmatch(path.name)
    assert match is not None, path  # noqa: S101 - callers list claim files only
    return int(match.group(1))


def holder(folder: Path) -> Owner | None:
    """The live process that works on the folder. A process on another host counts as live for a while after a heartbeat."""
    files = claim_files(folder)
    return live_owner(files[-1]) if files else None


def live_owner(path: Path) -> Owner | None:
    """The live process behind a claim file, as in `holder`."""
    owner = owner_of(path)
    if owner is None or owner.host == host():
        return owner if owner is not None and alive(owner) else None
    with suppress(OSError):
        return owner if time.time() - path.stat().st_mtime < HEARTBEAT_SECONDS * SILENT_BEATS else None
    return None


def last_owner(folder: Path) -> Owner | None:
    """The process that holds or last held the folder, alive or not; None if it released its lease."""
    files = claim_files(folder)
    return owner_of(files[-1]) if files else None


def owner_of(path: Path, problems: list[str] | None = None) -> Owner | None:
    """The process that wrote a claim file; None if it released its lease, or if the file is odd (see `run_files`)."""
    problems = [] if problems is None else problems
    if run_files.content(path, []) in (RELEASED, b"", None):
        return None
    value = run_files.mapping(path, run_files.OWNER, problems)
    return Owner(value["host"], value["pid"], value["started"], value.get("job", "")) if value else None


def _is_abandoned(path: Path, me: Owner) -> bool:
    """Whether the process behind a claim file is gone. For another host this waits for a heartbeat."""
    problems: list[str] = []
    owner = owner_of(path, problems)
    if owner is None and path.read_bytes() == RELEASED:
        return True
    if owner is not None and owner == me:
        with _lock:
            return path not in _held_here  # a lease that could not be released because the files were unreachable
    if owner is not None and owner.host == me.host:
        return not alive(owner)
    if owner is not None and me.job and owner.job == me.job:
        return True  # an earlier attempt of this very job, which Slurm requeued
    for problem in problems:
        log.warning("%s; waiting up to %.0f s for its heartbeat", problem, SILENT_BEATS * HEARTBEAT_SECONDS)
    before = _heartbeat(path)
    for _ in range(SILENT_BEATS):
        time.sleep(HEARTBEAT_SECONDS)
        if _heartbeat(path) != before:
            return False
    return True


def _heartbeat(path: Path) -> tuple[int, int]:
    """When a claim file was last touched, and its size. It is opened, since NFS asks the server only for open files."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
    return status.st_mtime_ns, status.st_size


class Lease:
    """A folder held by this process. `abandoned_by` is the owner before, if it never released its lease."""

    def __init__(self, path: Path, abandoned_by: Owner | None) -> None:
        self.path, self.abandoned_by = path, abandoned_by
        self._beat_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises Overtaken if another process holds or held the folder, OSError if the folder cannot be read now."""
        if time.monotonic() - self._beat_at > HEARTBEAT_SECONDS * SILENT_BEATS / 2:
            try:
                os.utime(self.path)
            except FileNotFoundError as error:  # its message does not name the file
                raise FileNotFoundError(error.errno, error.strerror, str(self.path)) from error
            self._beat_at = time.monotonic()
        files = _claim_files(self.path.parent)
        if not files:
            raise Overtaken(
                f"{self.path} is gone: another process took the folder and finished it, or somebody deleted it"
            )
        if files[-1] != self.path:
            raise Overtaken(f"{files[-1]} was taken by {owner_of(files[-1])}")

    def release(self) -> None:
        """Release the folder. The claim file shrinks to one byte, which needs no disk space, and its number stays taken."""
        self._stop.set()
        self._thread.join()
        _held_here.discard(self.path)
        with suppress(OSError), open(self.path, "r+b") as file:
            file.write(RELEASED)
            file.truncate()

    def remove_claims(self) -> None:
        """Remove all claim files, once nothing is left to do in the folder."""
        for path in _claim_files(self.path.parent):
            path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # an unreachable file server costs a heartbeat, not the run
                os.utime(self.path)
                self._beat_at = time.monotonic()


@contextmanager
def acquire(folder: Path) -> Iterator[Lease | None]:
    """Hold a lease on the folder; yields None if a live process holds it.

    Each number is taken once, by an atomic link, and only by a process that saw the previous number released or abandoned.
    A late process, whose number is no longer the highest, gives it up.
    Raises OSError if the folder cannot be written.
    """
    me = process()
    while True:
        files = _claim_files(folder)
        try:
            if files and not _is_abandoned(files[-1], me):
                yield None
                return
        except FileNotFoundError:  # released and removed meanwhile
            continue
        path = folder / f"claim.{_number(files[-1]) + 1 if files else 1}"
        with _lock:
            linked = _link(path, me)
            _held_here.update([path] if linked else [])
        if not linked:
            continue
        is_highest = False
        try:
            if is_highest := _claim_files(folder)[-1:] == [path]:
                break
        finally:
            if not is_highest:
                _held_here.discard(path)
        path.unlink(missing_ok=True)
    before = owner_of(files[-1]) if files else None
    lease = Lease(path, None if before == me else before)
    try:
        for old in files:
            old.unlink(missing_ok=True)
        yield lease
    finally:
        lease.release()


def _link(path: Path, me: Owner) -> bool:
    """Create the claim file `path` and its content in one step; False if it exists."""
    source = path.with_name(f".owner.{me.host.replace('/', '.')}.{me.pid}.{threading.get_ident()}")
    write_atomically(source, run_files.encode(asdict(me)))
    try:
        os.link(source, path)
    except FileExistsError:
        return source.stat().st_nlink == 2  # the link exists; only the server's answer was lost
    except OSError:  # a file system without links: use exclusive creation
        return _create(path, source.read_bytes())
    finally:
        source.unlink(missing_ok=True)
    return True


def _create(path: Path, content: bytes) -> bool:
    try:
        file = open(path, "xb")  # noqa: SIM115 - a failing write must not be taken for a file of another process
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True
