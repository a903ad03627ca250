"""Identifies processes across hosts. The start time distinguishes a process from a later one with the same number."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process that works on a folder. `started`: its start time as its system prints it; `job`: its Slurm job or ""."""

    host: str
    pid: int
    started: str
    job: str = ""


@cache
def host() -> str:
    """This host and its PID namespace: containers may share a host's name, but not its processes."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    return f"{socket.gethostname()}/{namespace}"


def process(pid: int | None = None) -> Owner:
    """The process `pid` of this host, or this process."""
    pid, env = os.getpid() if pid is None else pid, os.environ
    task = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID')}" if "SLURM_ARRAY_JOB_ID" in env else ""
    return Owner(host(), pid, started_at(pid) or "", task or env.get("SLURM_JOB_ID", ""))


def alive(owner: Owner) -> bool:
    """Whether a process on this host still runs."""
    return bool(owner.started) and started_at(owner.pid) == owner.started


def started_at(pid: int) -> str | None:
    """The start time of `pid` as the system prints it; None if there is no such process or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    state, _, started = _ps(pid, "state=,lstart=").partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def is_stopped(pid: int) -> bool:
    """Whether `pid` is stopped, for example by Ctrl-Z."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return _ps(pid, "state=").startswith("T")


def command_line(pid: int) -> list[str]:
    """The words of the command that `pid` runs; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return [] if Path("/proc/self/stat").exists() else _ps(pid, "command=").split()


def _ps(pid: int, columns: str) -> str:
    """The output of `ps` for a process, on systems without /proc."""
    try:
        listing = subprocess.run(["ps", "-o", columns, "-p", str(pid)], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return listing.stdout.strip()
