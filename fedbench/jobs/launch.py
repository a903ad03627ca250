"""Hands runs to this process or to one process per core or GPU of this machine, and remembers who has them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedbench.base import lease
from fedbench.base.home import ROOT
from fedbench.base.records import RunFolder
from fedbench.base.storage import write_aside
from fedbench.plan.config import Sweep

FOLDER = ".submitit"  # in the results folder: what was submitted, and the logs of jobs


class LaunchError(RuntimeError):
    """Runs cannot be started: says why, and what was submitted before."""


# -- what is remembered of a submission ------------------------------------------------------------------------
def job_of(folder: RunFolder) -> dict[str, Any]:
    """{} or what last took the run: {"scheduler", "log", "sweep", and "id" (Slurm) or "owners" (processes of a host)}."""
    return folder.mapping("job.json")


def remember(results: Path, names: Sequence[str], job: Mapping[str, Any]) -> None:
    """Write down who has the runs."""
    for name in names:
        write_aside(results / name / "job.json", json.dumps(job).encode())


def forget(results: Path, names: Sequence[str]) -> None:
    """Nobody has the runs any more."""
    for name in names:
        (results / name / "job.json").unlink(missing_ok=True)


def holds(owner: Mapping[str, Any]) -> bool:
    """Whether a process that was remembered is one of this host's, and alive."""
    return bool(owner["host"] == lease.host() and lease.alive(lease.Owner(**owner)))


@contextmanager
def planning(results: Path) -> Iterator[Path]:
    """The folder of submissions; held by one sweep at a time, on whatever host, so that none submits what another does."""
    if not results.parent.is_dir():  # more likely a disk that is away than a wish for a deep new tree
        raise LaunchError(f"{results.parent} does not exist: is its disk away? Else make it first")
    folder = results / FOLDER
    results.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    while True:
        with lease.claim(folder) as hold:
            if hold is not None:
                yield folder
                return
        time.sleep(0.5)


@contextmanager
def deaf() -> Iterator[None]:
    """No Ctrl-C here: not between a submission and its note, and, inherited, not in the workers, which we end ourselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def environment(drop: str = "", **more: str) -> Iterator[None]:
    """os.environ with `more` and without the names that start with `drop`, as the processes started meanwhile see it."""
    before = dict(os.environ)
    for name in [name for name in before if drop and name.startswith(drop) and name != "SLURM_CONF"]:
        del os.environ[name]
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def python_path() -> str:
    """PYTHONPATH with this project in front."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)


# -- this process ----------------------------------------------------------------------------------------------
def note_inline(sweep: Sweep, results: Path, names: Sequence[str]) -> None:
    """Remember that this process is about to do the runs."""
    for name in names:
        log = str(RunFolder(results / name).log)
        me = [asdict(lease.process())]
        remember(results, [name], {"scheduler": "inline", "owners": me, "log": log, "sweep": sweep.name})


# -- one process per core or GPU -------------------------------------------------------------------------------
def slots(sweep: Sweep) -> tuple[int, list[str] | None, int]:
    """(processes at once, GPU of each in turn or None, threads of each), so that nothing is used twice."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device, gpus = sweep.machine.device, None
    if device != "cpu":
        import torch  # the only question to it here
    if device != "cpu" and torch.cuda.device_count():
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(i) for i in range(torch.cuda.device_count())] if listed is None else listed.split(",")
        gpus = [",".join(gpus)] if ":" in device else gpus  # cuda:N counts among all of them
    each = sweep.cluster.runs_per_gpu
    count = sweep.cluster.workers or (len(gpus) * each if gpus else max(1, cores // sweep.cluster.cpus))
    return count, gpus, max(1, cores // count)


def local(sweep: Sweep, results: Path, names: Sequence[str], folder: Path) -> int:
    """Start a keeper with a worker for each slot, which outlives this process; returns the number of slots."""
    count, gpus, threads = slots(sweep)
    count, threads = min(count, len(names)), min(threads, sweep.cluster.cpus)
    few = str(threads)
    env = {"OMP_NUM_THREADS": few, "MKL_NUM_THREADS": few, "OPENBLAS_NUM_THREADS": few, "PYTHONPATH": python_path()}
    log = folder / f"local_{lease.host().replace('/', '_')}_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}.log"
    asked = {"results": str(results), "names": list(names), "count": count, "devices": gpus, "threads": threads}
    with deaf(), environment(**env), open(log, "ab") as out:
        # A session of its own: neither a Ctrl-C nor a closed terminal reaches it.
        keeper = subprocess.Popen(
            [sys.executable, "-m", "fedbench.jobs.supervisor"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        job = {
            "scheduler": "local",
            "owners": [asdict(lease.process(keeper.pid))],
            "log": str(log),
            "sweep": sweep.name,
        }
        remember(results, names, job)
        _hand(keeper, asked)
    return count


def _hand(keeper: subprocess.Popen[bytes], asked: Mapping[str, Any]) -> None:
    """Tell the keeper what to do, and let it go."""
    assert keeper.stdin is not None  # noqa: S101 - for the type checker
    with suppress(BrokenPipeError):
        keeper.stdin.write(json.dumps(asked).encode())
    with suppress(BrokenPipeError):
        keeper.stdin.close()
    keeper.returncode = 0  # nobody will wait for it: else Python complains that it still runs


def stop(owners: Sequence[Mapping[str, Any]], seconds: float = 30.0) -> bool:
    """End processes of this host at the next round boundary of their runs; whether all are gone."""
    end = time.monotonic() + seconds
    for owner in owners:
        if holds(owner):
            os.kill(int(owner["pid"]), signal.SIGTERM)
    while any(holds(owner) for owner in owners):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
