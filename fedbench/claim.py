"""Who works on a folder, such as a run's: a claim file in it, so that a second copy of a job passes over what is taken."""

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
from pathlib import Path
from typing import Protocol

from fedbench.records import write_aside

HEARTBEAT_SECONDS = 10.0
SILENT_BEATS = 6  # a claim from another host that misses so many heartbeats in a row is nobody's


class Place(Protocol):
    """A folder with work to do, such as a run's: `fedbench.records.RunFolder`."""

    @property
    def path(self) -> Path:
        """The folder, where the claim files lie."""

    @property
    def status(self) -> str:
        """``done`` when nothing is left to do."""


@dataclass(frozen=True)
class Owner:
    """A process on some host; `started` tells it from a later one with the same number, `job` is its scheduler's id."""

    host: str
    pid: int
    started: str
    job: str = ""


def process(pid: int | None = None) -> Owner:
    """The process `pid` of this host, or this one."""
    pid, env = os.getpid() if pid is None else pid, os.environ
    array = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID')}" if "SLURM_ARRAY_JOB_ID" in env else ""
    return Owner(socket.gethostname(), pid, _started(pid) or "", array or env.get("SLURM_JOB_ID", ""))


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


def claims(folder: Place) -> list[Path]:
    """The claim files of a folder, oldest first; all but the last were left by processes that died."""
    return sorted(folder.path.glob("claim.*"), key=lambda path: int(path.suffix[1:]))


def holder(folder: Place) -> Owner | None:
    """The live process that works there, as far as can be told at once: another host is believed for a minute."""
    for path in claims(folder)[-1:]:
        owner = owner_in(path)
        if owner is None or owner.host == socket.gethostname():
            return owner if owner is not None and alive(owner) else None
        with suppress(FileNotFoundError):
            return owner if time.time() - path.stat().st_mtime < HEARTBEAT_SECONDS * SILENT_BEATS else None
    return None


def owner_in(path: Path) -> Owner | None:
    """Whom a file names, None where it cannot be read."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _silent(path: Path, me: Owner) -> bool:
    """Whether the process behind a claim is gone. Clocks of two hosts are not compared: a heartbeat is waited for."""
    owner = owner_in(path)
    if owner is not None and owner.host == me.host:
        return not alive(owner)
    if owner is not None and me.job and owner.job == me.job:
        return True  # an earlier life of this very job, which was requeued
    try:
        before = path.stat().st_mtime_ns
        for _ in range(SILENT_BEATS):
            time.sleep(HEARTBEAT_SECONDS)
            if path.stat().st_mtime_ns != before:
                return False
    except FileNotFoundError:  # released meanwhile
        return True
    return True


@contextmanager
def claim(folder: Place) -> Iterator[bool]:
    """Hold the folder against other processes; gives False where a live one holds it.

    Claims are numbered and each number is taken by an atomic link, so of all who find claim 3 abandoned one gets 4.
    Abandoned claims stay until the work is done: removing one could free a number that somebody else has just judged.
    Whoever holds a claim looks again whether the work is done.
    """
    me = process()
    while True:
        there = claims(folder)
        if there and not _silent(there[-1], me):
            yield False
            return
        path = folder.path / f"claim.{int(there[-1].suffix[1:]) + 1 if there else 1}"
        if _link(path, me):
            break
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        for old in claims(folder) if folder.status == "done" else [path]:
            old.unlink(missing_ok=True)


def _link(path: Path, me: Owner) -> bool:
    """Make `path` with its content in one step; False where it is there."""
    aside = path.with_name(f".owner.{me.host}.{me.pid}.{threading.get_ident()}")
    write_aside(aside, json.dumps(asdict(me)).encode())
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: its own "only if it is not there" has to do
        try:
            with open(path, "xb") as file:
                file.write(aside.read_bytes())
        except FileExistsError:
            return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a file server that is away for a moment costs a beat, not the run
            os.utime(path)
