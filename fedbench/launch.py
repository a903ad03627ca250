"""Hands runs to submitit: to this process, to one process per core or GPU, or to Slurm. Slurm's words are spoken here alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import submitit
import torch
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from fedbench import claim
from fedbench.config import Cluster, ConfigError, Sweep
from fedbench.plugins import HOME
from fedbench.records import RunFolder, write_aside

T = TypeVar("T")
Packs = Sequence[Sequence[str]]

LIVES = 20  # how often a job may reach its time limit and be requeued before a person should look
NO_LIMIT_MINUTES = 60 * 24 * 3650  # local workers have no time limit; submitit wants one
SIGNAL_SECONDS = 90  # before the time limit; the run's last checkpoint serves, so there is nothing to save
ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
)
TRANSIENT = re.compile(r"timed out|temporarily|unable to contact|try again|connection", re.IGNORECASE)


class LaunchError(RuntimeError):
    """The scheduler would not take the jobs; says what it answered and what was submitted before."""


@dataclass(frozen=True)
class Worker:
    """What submitit pickles and calls: a results folder and run names, for plug-in objects do not pickle.

    `spare` names the packs of the other workers, for one who is through with his own; `threads` limits those of a run;
    `device` is the GPU of a local worker. `local`: end at SIGTERM, which submitit ignores.
    """

    results: str
    names: tuple[str, ...]
    spare: tuple[str, ...] = ()
    threads: int | None = None
    device: str | None = None
    local: bool = False

    def __call__(self) -> None:
        """Do the runs. Raises RecordsError where the results folder is not there."""
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device  # read at the first use of CUDA, which is later
        if self.local:
            signal.signal(signal.SIGTERM, _leave)
        from fedbench.job import run_job  # it imports the whole simulation; who only submits does without

        run_job(Path(self.results), self.names, self.spare, self.threads)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit when the time limit is near: the same again, for the runs resume by themselves."""
        from fedbench.job import interrupted

        interrupted.set()
        return DelayedSubmission(self)


def _leave(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


# -- what is remembered of a submission ------------------------------------------------------------------------
def job_of(folder: RunFolder) -> dict[str, Any]:
    """{} or what last took the run: {"scheduler", "log", and "id" (Slurm) or "owners" (processes of a host)}."""
    try:
        value = json.loads((folder.path / "job.json").read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remember(results: Path, names: Sequence[str], job: Mapping[str, Any]) -> None:
    for name in names:
        write_aside(results / name / "job.json", json.dumps(job).encode())


def _processes(pids: Sequence[int]) -> list[dict[str, Any]]:
    return [asdict(claim.process(pid)) for pid in pids]


@contextmanager
def planning(results: Path) -> Iterator[Path]:
    """The folder of submissions; held by one sweep at a time, so that two started together do not submit the same runs."""
    folder = results / ".submitit"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


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
def _environment(drop: str = "", **more: str) -> Iterator[None]:
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


def _python_path() -> str:
    return os.pathsep.join(part for part in (str(HOME), os.environ.get("PYTHONPATH", "")) if part)


# -- this process ----------------------------------------------------------------------------------------------
def note_inline(results: Path, names: Sequence[str]) -> None:
    """Remember that this process is about to do the runs."""
    for name in names:
        job = {"scheduler": "inline", "owners": _processes([os.getpid()]), "log": str(RunFolder(results / name).log)}
        _remember(results, [name], job)


# -- one process per core or GPU -------------------------------------------------------------------------------
def slots(sweep: Sweep) -> tuple[int, list[str] | None, int]:
    """(processes at once, GPU of each in turn or None, threads of each), so that nothing is used twice."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device, gpus = sweep.machine.device, None
    if device != "cpu" and torch.cuda.device_count():
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(i) for i in range(torch.cuda.device_count())] if listed is None else listed.split(",")
        gpus = [",".join(gpus)] if ":" in device else gpus  # cuda:N counts among all of them
    count = sweep.cluster.workers or (len(gpus) if gpus else max(1, cores // sweep.cluster.cpus))
    return count, gpus, max(1, cores // count)


def local(sweep: Sweep, results: Path, names: Sequence[str], folder: Path) -> list[submitit.Job[None]]:
    """Start a worker for each slot, dealt its own pack of `names`; they outlive this process unless it stops them."""
    count, gpus, threads = slots(sweep)
    count = min(count, len(names))
    packs = [tuple(names[i::count]) for i in range(count)]
    jobs: list[submitit.Job[None]] = []
    few = str(min(threads, sweep.cluster.cpus))
    env = {"OMP_NUM_THREADS": few, "MKL_NUM_THREADS": few, "OPENBLAS_NUM_THREADS": few, "PYTHONPATH": _python_path()}
    with deaf(), _environment(**env):
        for i, pack in enumerate(packs):
            spare = tuple(name for k in range(1, count) for name in reversed(packs[(i + k) % count]))
            executor = submitit.LocalExecutor(folder=folder)
            executor.update_parameters(timeout_min=NO_LIMIT_MINUTES, stderr_to_stdout=True)
            gpu = gpus[i % len(gpus)] if gpus else None
            jobs.append(executor.submit(Worker(str(results), pack, spare, threads, gpu, local=True)))
        owners = _processes([int(job.job_id) for job in jobs])
        for job, pack in zip(jobs, packs, strict=True):
            _remember(results, pack, {"scheduler": "local", "owners": owners, "log": str(job.paths.stdout)})
    return jobs


def stop(jobs: Sequence[submitit.Job[None]], seconds: float = 20.0) -> bool:
    """End local workers at their next line of Python; whether all are gone. Their runs go on from their checkpoints."""
    end = time.monotonic() + seconds
    while living := [job for job in jobs if not job.done()]:
        if time.monotonic() > end:
            return False
        for job in living:
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller hands it to the worker
        time.sleep(0.5)
    return True


def reap(jobs: Sequence[submitit.Job[None]], seconds: float = 30.0) -> None:
    """Wait for workers whose runs have ended to leave as well."""
    end = time.monotonic() + seconds
    while not all(job.done() for job in jobs) and time.monotonic() < end:
        time.sleep(0.1)


# -- Slurm -----------------------------------------------------------------------------------------------------
def slurm(sweep: Sweep, results: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Submit `names` as job arrays no longer than the cluster allows; returns the ids of arrays and jobs.

    Raises ConfigError where there is no Slurm or submitit does not know an option, LaunchError where Slurm refuses the jobs.
    """
    cluster = sweep.cluster
    packs = [names[i : i + cluster.runs_per_job] for i in range(0, len(names), cluster.runs_per_job)]
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=LIVES)
        executor.update_parameters(**slurm_parameters(cluster))
    except (ValueError, TypeError, RuntimeError) as error:  # an unknown option; no Slurm here
        raise ConfigError(f"cluster: {error}") from error
    size, ids = _max_array_size(), []
    for start in range(0, len(packs), size):
        chunk = packs[start : start + size]
        workers = [Worker(str(results), tuple(pack)) for pack in chunk]
        with deaf(), _environment(drop="SLURM_"):  # of a job in which the sweep itself may run
            try:
                jobs = _patiently(lambda workers=workers: _array(executor, workers))  # type: ignore[misc]
            except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
                raise LaunchError(
                    f"sbatch refused {len(chunk)} jobs after {start} of {len(packs)} were submitted: {error}"
                ) from error
            for job, pack in zip(jobs, chunk, strict=True):
                _remember(results, pack, {"scheduler": "slurm", "id": job.job_id, "log": str(job.paths.stdout)})
        ids.append(str(jobs[0].job_id).split("_")[0])
    return ids


def _array(executor: submitit.SlurmExecutor, workers: Sequence[Worker]) -> list[submitit.Job[None]]:
    with executor.batch():
        jobs = [executor.submit(worker) for worker in workers]
    return jobs


def _patiently(submit: Callable[[], T], waits: Sequence[float] = (5.0, 20.0, 60.0)) -> T:
    """Ask again where a busy controller did not answer; if it did take the jobs, the runs' claims keep them from harm."""
    for wait in waits:
        try:
            return submit()
        except FailedJobError as error:
            if not TRANSIENT.search(str(error)):
                raise
            time.sleep(wait)
    return submit()


def slurm_parameters(cluster: Cluster) -> dict[str, Any]:
    """The `cluster` block in submitit's words. Raises ConfigError."""
    parameters: dict[str, Any] = {
        "job_name": "fedbench",
        "time": cluster.timeout_min,
        "signal_delay_s": min(SIGNAL_SECONDS, cluster.timeout_min * 60 // 3),
        "cpus_per_task": cluster.cpus,
        "srun_args": [f"--cpus-per-task={cluster.cpus}"],  # srun does not inherit it from Slurm 22.05 on
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default is refused where wckeys are tracked
    }
    optional = {
        "gpus_per_node": cluster.gpus or None,
        "mem": None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}MB",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
    }
    parameters |= {key: value for key, value in optional.items() if value is not None}
    more = {key.removeprefix("slurm_"): value for key, value in cluster.slurm.items()}
    further = {"requeue": True} | (more.pop("additional_parameters", None) or {})
    setup = [
        f"export PYTHONPATH={shlex.quote(str(HOME))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"export OMP_NUM_THREADS={cluster.cpus} MKL_NUM_THREADS={cluster.cpus}",
        *cluster.setup,
        *(more.pop("setup", None) or ()),
    ]
    for key, value in (parameters | more | further).items():
        if isinstance(value, str) and "\n" in value:  # would end the comment that sbatch reads and begin a command
            raise ConfigError(f"cluster.{key}: a line break in {value!r}")
    return parameters | more | {"additional_parameters": further, "setup": setup}


def _max_array_size() -> int:
    """How many jobs an array may have; small where the cluster does not tell."""
    try:
        told = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    return max(1, int(found.group(1))) if found else 100


class Queue:
    """Which Slurm jobs live, by one call of squeue for all of them; sacct is not asked, for many clusters have none."""

    def __init__(self) -> None:
        self._ids: set[str] | None = set()  # None: Slurm did not answer

    def ask(self, ids: Iterable[str]) -> None:
        """Look up the jobs `ids`, such as 12 or 12_3."""
        mains = sorted({id_.split("_")[0] for id_ in ids})
        if not mains:
            return
        command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(mains)}"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        except (OSError, subprocess.TimeoutExpired):
            self._ids = None
            return
        if told.returncode and "Invalid job id" not in told.stderr:  # that is how a single forgotten job is answered
            self._ids = None
            return
        rows = [line.split() for line in told.stdout.splitlines()]
        self._ids = {row[0] for row in rows if len(row) == 2 and row[1] not in ENDED}

    def lives(self, id_: str) -> bool:
        """Whether the job waits or runs; believed where Slurm did not answer."""
        return self._ids is None or id_ in self._ids
