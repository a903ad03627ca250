"""Who works on a folder: a numbered claim file in it, so that a second process passes it over while the first lives.

Made for shared file systems: a number is taken by a hard link, which is atomic on NFS too, clocks of two hosts are never
compared, and no lock of the kernel is relied on.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from fedbench.base.storage import write_aside

HEARTBEAT_SECONDS = 10.0
SILENT_BEATS = 12  # a claim from another host that misses so many heartbeats in a row is nobody's; longer than a file
# server is usually away


RELEASED = b"-"  # all that is left of a claim that was given back; an empty file is one that is just being made

_held: set[Path] = set()  # by this process
_lock = threading.Lock()  # between a claim and its entry in `_held`


class Overtaken(RuntimeError):
    """Another process took the folder over, for this one was silent for too long (frozen, or cut off from the files)."""


@dataclass(frozen=True)
class Owner:
    """A process on some host; `started` tells it from a later one with the same number, `job` is its scheduler's id."""

    host: str
    pid: int
    started: str
    job: str = ""


@cache
def host() -> str:
    """This host, and the process numbers' own space on it: containers may share a host's name, but not its processes."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    return f"{socket.gethostname()}/{space}"


def process(pid: int | None = None) -> Owner:
    """The process `pid` of this host, or this one."""
    pid, env = os.getpid() if pid is None else pid, os.environ
    array = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID')}" if "SLURM_ARRAY_JOB_ID" in env else ""
    return Owner(host(), pid, _started(pid) or "", array or env.get("SLURM_JOB_ID", ""))


def alive(owner: Owner) -> bool:
    """Whether a process of this host still runs."""
    return bool(owner.started) and _started(owner.pid) == owner.started


def _started(pid: int) -> str | None:
    """When `pid` was started, as its system tells it; None where there is no such process (or only its remains)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    told = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = told.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def claims(folder: Path) -> list[Path]:
    """The claim files of a folder, oldest first; none where there is no folder. Only the last one counts."""
    try:
        return _claims(folder)
    except OSError:
        return []


def _claims(folder: Path) -> list[Path]:
    """The same. Raises OSError where the folder is away, whose claims must not be taken for none."""
    return sorted((path for path in folder.iterdir() if path.name.startswith("claim.")), key=_number)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def holder(folder: Path) -> Owner | None:
    """The live process that works on the folder, as far as can be told at once: another host is believed for a while."""
    return None if not (there := claims(folder)) else living(there[-1])


def living(path: Path) -> Owner | None:
    """The live process behind the claim `path`, as `holder` says."""
    owner = owner_in(path)
    if owner is None or owner.host == host():
        return owner if owner is not None and alive(owner) else None
    with suppress(OSError):
        return owner if time.time() - path.stat().st_mtime < HEARTBEAT_SECONDS * SILENT_BEATS else None
    return None


def owner_in(path: Path) -> Owner | None:
    """Whose claim it is; None for one that was given back."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _silent(path: Path, me: Owner) -> bool:
    """Whether the process behind a claim is gone. Clocks of two hosts are not compared: a heartbeat is waited for."""
    owner = owner_in(path)
    if owner is None and path.read_bytes() == RELEASED:
        return True
    if owner is not None and owner == me:
        with _lock:
            return path not in _held  # of a hold that could not be given back, for the files were away
    if owner is not None and owner.host == me.host:
        return not alive(owner)
    if owner is not None and me.job and owner.job == me.job:
        return True  # an earlier life of this very job, which was requeued
    before = _beaten(path)
    for _ in range(SILENT_BEATS):
        time.sleep(HEARTBEAT_SECONDS)
        if _beaten(path) != before:
            return False
    return True


def _beaten(path: Path) -> tuple[int, int]:
    """When a claim last had a heartbeat, and its size. Opened, since NFS asks the server only for files that are."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
    return found.st_mtime_ns, found.st_size


class Hold:
    """A held folder. `dead` is the owner of the claim before, where that was never given back."""

    def __init__(self, path: Path, dead: Owner | None) -> None:
        self.path, self.dead = path, dead
        self._beat_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises Overtaken where another process has or had the folder, OSError where that cannot be told just now."""
        if time.monotonic() - self._beat_at > HEARTBEAT_SECONDS * SILENT_BEATS / 2:
            try:
                os.utime(self.path)
            except FileNotFoundError as error:  # which does not name the file by itself
                raise FileNotFoundError(error.errno, error.strerror, str(self.path)) from error
            self._beat_at = time.monotonic()
        there = _claims(self.path.parent)
        if not there:
            raise Overtaken(f"{self.path} is gone: another process took the folder and is through with it")
        if there[-1] != self.path:
            raise Overtaken(f"{there[-1]} was taken by {owner_in(there[-1])}")

    def release(self) -> None:
        """Give the folder back: the claim becomes one byte long, which needs no room, and its number stays taken."""
        self._stop.set()
        self._thread.join()
        _held.discard(self.path)
        with suppress(OSError), open(self.path, "r+b") as file:
            file.write(RELEASED)
            file.truncate()

    def finish(self) -> None:
        """Nothing is left to do in the folder, so no claim of it is needed."""
        for path in _claims(self.path.parent):
            path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a file server that is away for a moment costs a beat, not the run
                os.utime(self.path)
                self._beat_at = time.monotonic()


@contextmanager
def claim(folder: Path) -> Iterator[Hold | None]:
    """Hold the folder against other processes; gives None where a live one holds it.

    Each number is taken once, by an atomic link, and only by one who found the number before it given back or abandoned.
    Of all who do so one gets it, and whoever comes late, with a number that is no longer the highest, drops it.
    Raises OSError where the folder cannot be written.
    """
    me = process()
    while True:
        there = _claims(folder)
        try:
            if there and not _silent(there[-1], me):
                yield None
                return
        except FileNotFoundError:  # given back and cleared away meanwhile
            continue
        path = folder / f"claim.{_number(there[-1]) + 1 if there else 1}"
        with _lock:
            made = _link(path, me)
            _held.update([path] if made else [])
        if not made:
            continue
        ours = False
        try:
            if ours := _claims(folder)[-1:] == [path]:
                break
        finally:
            if not ours:
                _held.discard(path)
        path.unlink(missing_ok=True)
    before = owner_in(there[-1]) if there else None
    hold = Hold(path, None if before == me else before)
    for old in there:
        old.unlink(missing_ok=True)
    try:
        yield hold
    finally:
        hold.release()


def _link(path: Path, me: Owner) -> bool:
    """Make `path` with its content in one step; False where it is there."""
    aside = path.with_name(f".owner.{me.host.replace('/', '.')}.{me.pid}.{threading.get_ident()}")
    write_aside(aside, json.dumps(asdict(me)).encode())
    try:
        os.link(aside, path)
    except FileExistsError:
        return aside.stat().st_nlink == 2  # made after all, and only the server's answer was lost
    except OSError:  # a file system without links: its own "only if it is not there" has to do
        return _create(path, aside.read_bytes())
    finally:
        aside.unlink(missing_ok=True)
    return True


def _create(path: Path, content: bytes) -> bool:
    try:
        file = open(path, "xb")  # noqa: SIM115 - to tell whose file it is when writing fails
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True
