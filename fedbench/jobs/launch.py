"""Hands runs to this process, or to one process for each core or GPU of this machine, and records who has which run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedbench.base import lease, processes, run_files
from fedbench.base.home import ROOT
from fedbench.base.processes import Owner
from fedbench.base.records import RunFolder
from fedbench.base.storage import write_atomically
from fedbench.jobs.grouping import neighbours_in_a_slot, training_groups
from fedbench.plan.config import Sweep

FOLDER = ".submitit"  # in the results folder: what was submitted, and the logs of jobs
SUPERVISOR = "fedbench.jobs.supervisor"
SILENT_SECONDS = 3.0  # a sweep that waits longer than this for another sweep says so


class LaunchError(RuntimeError):
    """Runs cannot be started. The message says why, and what was submitted before."""


# -- who has a run -----------------------------------------------------------------------------------------------
def remember(results: Path, names: Sequence[str], job: Mapping[str, Any]) -> None:
    """Write to each run's job.json which job has the run."""
    for name in names:
        write_atomically(results / name / "job.json", run_files.encode(job))


def forget(results: Path, names: Sequence[str]) -> None:
    """Remove the runs' job.json: no job has them any more."""
    for name in names:
        (results / name / "job.json").unlink(missing_ok=True)


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether a process that job.json names is on this host and alive."""
    return bool(owner["host"] == processes.host() and processes.alive(Owner(**owner)))


def is_ours(owner: Mapping[str, Any], results: Path, sweep: str) -> bool:
    """Whether a live process on this host is a supervisor of the sweep, or the sweep's command itself.

    The process's command line decides, since a job.json may name any process.
    """
    words = processes.command_line(int(owner["pid"]))
    if SUPERVISOR in words:
        return words[words.index(SUPERVISOR) + 1 :] == [str(results), sweep]
    program = [Path(word).name for word in words[:2]]
    starts_sweep = "sweep" in words and ("fedbench" in program or words[1:3] == ["-m", "fedbench"])
    return starts_sweep or "fedbench.sweep" in words


@contextmanager
def planning(results: Path, warn: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """Hold the folder of submissions, so that no other sweep, on any host, submits the same runs.

    After a wait of `SILENT_SECONDS`, calls `warn` with the process that holds the folder. Raises LaunchError.
    """
    if not results.parent.is_dir():  # probably its disk is away
        raise LaunchError(f"{results.parent} does not exist: is its disk away? Else make it first")
    folder = results / FOLDER
    results.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    over = threading.Event()
    waiting = threading.Thread(target=_warn_of_holder, args=(folder, warn, over), daemon=True)
    waiting.start()
    try:
        while True:
            with lease.acquire(folder) as held:  # it may take minutes to detect that a process on another host is gone
                if held is not None:
                    over.set()
                    yield folder
                    return
            time.sleep(0.5)
    finally:
        over.set()


def _warn_of_holder(folder: Path, warn: Callable[[str], None], over: threading.Event) -> None:
    if over.wait(SILENT_SECONDS):
        return
    owner = lease.last_owner(folder)
    if owner is None or owner == processes.process():
        return
    here = owner.host == processes.host()
    what = f"process {owner.pid} on {owner.host.split('/')[0]}" + (f" (Slurm job {owner.job})" if owner.job else "")
    stopped = here and processes.is_stopped(owner.pid)
    hint = f"; it is stopped: continue it (`kill -CONT {owner.pid}`, or `fg`) or end it" if stopped else ""
    warn(f"waiting: {what} is planning a sweep in {folder.parent}{hint}")


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C between a submission and its note, and in the workers, which inherit this and are ended differently."""
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
    """Add `more` to os.environ and remove names that start with `drop`, for processes started in the block."""
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
    """PYTHONPATH with this project first."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)


# -- this process ----------------------------------------------------------------------------------------------
def note_inline(sweep: Sweep, results: Path, names: Sequence[str]) -> None:
    """Record that this process is about to do the runs."""
    me = [asdict(processes.process())]
    for name in names:
        log = str(RunFolder(results / name).log)
        remember(results, [name], {"scheduler": "inline", "owners": me, "log": log, "sweep": sweep.name})


def forget_inline(results: Path, names: Sequence[str]) -> None:
    """Record that this process leaves those of the runs that have not ended: they are not lost, and a command continues them.

    Runs that another process has taken since then stay its own.
    """
    me = [asdict(processes.process())]
    folders = {name: RunFolder(results / name) for name in names}
    open_ = [name for name, folder in folders.items() if folder.status not in ("done", "failed")]
    forget(results, [name for name in open_ if folders[name].job().get("owners") == me])


# -- one process per core or GPU -------------------------------------------------------------------------------
def slots(sweep: Sweep) -> tuple[int, list[str] | None, int]:
    """(processes at once, GPU of each in turn or None, threads of each), so that no core or GPU is used twice."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device, gpus = sweep.machine.device, None
    if device != "cpu":
        import torch  # slow to import, and needed only here
    if device != "cpu" and torch.cuda.device_count():
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(i) for i in range(torch.cuda.device_count())] if listed is None else listed.split(",")
        gpus = [",".join(gpus)] if ":" in device else gpus  # cuda:N counts among all of them
    each = sweep.cluster.runs_per_gpu
    count = sweep.cluster.workers or (len(gpus) * each if gpus else max(1, cores // sweep.cluster.cpus))
    return count, gpus, max(1, cores // count)


def local(sweep: Sweep, results: Path, names: Sequence[str], folder: Path) -> int:
    """Start a supervisor with a worker for each slot. It outlives this process. Returns the number of slots."""
    count, gpus, threads = slots(sweep)
    groups = training_groups(sweep, names)
    count, threads = min(count, len(groups)), min(threads, sweep.cluster.cpus)
    if sweep.machine.pack:
        groups = neighbours_in_a_slot(groups, count)
    few = str(threads)
    env = {"OMP_NUM_THREADS": few, "MKL_NUM_THREADS": few, "OPENBLAS_NUM_THREADS": few, "PYTHONPATH": python_path()}
    host = processes.host().replace("/", "_")
    log = folder / f"local_{host}_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}.log"
    work = {"groups": groups, "count": count, "devices": gpus, "threads": threads}
    with ignoring_interrupts(), environment(**env), open(log, "ab") as out:
        # A separate session, so that neither Ctrl-C nor a closed terminal reaches it.
        supervisor = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, str(results), sweep.name],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        job = {
            "scheduler": "local",
            "owners": [asdict(processes.process(supervisor.pid))],
            "log": str(log),
            "sweep": sweep.name,
        }
        remember(results, names, job)
        _send(supervisor, work)
    return count


def _send(supervisor: subprocess.Popen[bytes], work: Mapping[str, Any]) -> None:
    """Send the supervisor its work, and leave it alone."""
    assert supervisor.stdin is not None  # noqa: S101 - for the type checker
    with suppress(BrokenPipeError):
        supervisor.stdin.write(json.dumps(work).encode())
    with suppress(BrokenPipeError):
        supervisor.stdin.close()
    supervisor.returncode = 0  # nobody waits for it; without this, Python would warn that it still runs


def stop(owners: Sequence[Mapping[str, Any]], seconds: float = 30.0) -> bool:
    """End processes on this host at the next round boundary of their runs. Returns whether all are gone."""
    end = time.monotonic() + seconds
    for owner in owners:
        if is_alive(owner):
            os.kill(int(owner["pid"]), signal.SIGTERM)
    while any(is_alive(owner) for owner in owners):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
