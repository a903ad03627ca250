"""Jobs on Slurm: arrays submitted through submitit, one squeue for all jobs, and the reason why a job ended."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fedbench.base.home import ROOT
from fedbench.base.run_files import JOB_ID
from fedbench.jobs.grouping import training_groups
from fedbench.jobs.launch import LaunchError, environment, ignoring_interrupts, remember
from fedbench.jobs.supervisor import Job
from fedbench.plan.config import Cluster, ConfigError, Sweep

T = TypeVar("T")

SIGNAL_SECONDS = 180  # before the time limit, so that a round can end and be written
# Job states of squeue, and the kinds of failure that they mean.
ENDED = {
    "COMPLETED": "lost",
    "FAILED": "lost",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
}
# What the last lines of a job's log say about its end, since Slurm forgets a job after minutes; the first match counts.
IN_LOG = (
    (re.compile(r"oom.kill|out.of.memory|OOM Killed", re.IGNORECASE), "out_of_memory"),
    (re.compile(r"DUE TO TIME LIMIT|\(timeout\): back into"), "timeout"),
    (re.compile(r"DUE TO NODE FAILURE|NODE_FAIL"), "node_failure"),
    (re.compile(r"DUE TO PREEMPTION|\(preempted\): back into"), "preempted"),
    (re.compile(r"(JOB|STEP) \S+ ON \S+ CANCELLED"), "cancelled"),
)
TAIL_BYTES = 4000
TRANSIENT = re.compile(
    r"timed out|temporarily|unable to contact|try again|connection|socket|slow down|backup|not responding|zero bytes",
    re.IGNORECASE,
)
WAITS = (5.0, 20.0, 60.0)  # seconds before asking a busy controller again
LIMIT = re.compile(r"limit|too many|MaxSubmit|policy", re.IGNORECASE)


def submit(sweep: Sweep, results: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Submit `names` as job arrays no longer than the cluster allows; returns the ids of arrays and jobs.

    Raises ConfigError if there is no Slurm or submitit does not know an option, LaunchError if Slurm refuses the jobs.
    """
    check_folder(folder)
    cluster = sweep.cluster
    each = max(cluster.runs_per_job, cluster.runs_per_gpu * max(1, cluster.gpus))  # so that no GPU of a job is idle
    groups = training_groups(sweep, names)
    shares = [tuple(groups[i : i + each]) for i in range(0, len(groups), each)]
    parameters = slurm_parameters(cluster)
    parameters["job_name"] = job_name(sweep.name)
    try:
        executor = submitit.SlurmExecutor(folder=folder)
        executor.update_parameters(**parameters)
    except (ValueError, TypeError, RuntimeError) as error:  # an unknown option; no Slurm here
        raise ConfigError(f"cluster: {error}") from error
    warning = int(parameters["signal_delay_s"])
    jobs = [Job(str(results), share, cluster.cpus, cluster.runs_per_gpu, warning) for share in shares]
    size, ids = _max_array_size(), []
    for start in range(0, len(jobs), size):
        for submitted, pack in _submitted(executor, jobs[start : start + size], start, len(jobs)):
            job = {
                "scheduler": "slurm",
                "cluster": cluster_name(),
                "id": str(submitted.job_id),
                "log": str(submitted.paths.stdout),
                "sweep": sweep.name,
            }
            remember(results, pack, job)
            main = str(submitted.job_id).split("_")[0]
            ids += [] if main in ids else [main]
    return ids


def _submitted(
    executor: submitit.SlurmExecutor, jobs: Sequence[Job], start: int, total: int
) -> Iterator[tuple[submitit.Job[None], tuple[str, ...]]]:
    """An array of `jobs`, or, if a limit of the cluster forbids it, two of half the size."""
    with ignoring_interrupts(), environment(drop="SLURM_"):  # the sweep itself may run in a job
        try:
            submitted = _patiently(lambda: _array(executor, jobs))
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
            if len(jobs) == 1 or not LIMIT.search(str(error)):
                raise LaunchError(
                    f"sbatch refused {len(jobs)} jobs after {start} of {total} were submitted, which continue; the same "
                    f"command submits the rest: {error}"
                ) from error
            submitted = None
        if submitted is not None:
            yield from zip(submitted, [job.names for job in jobs], strict=True)
    if submitted is None:
        half = len(jobs) // 2
        yield from _submitted(executor, jobs[:half], start, total)
        yield from _submitted(executor, jobs[half:], start + half, total)


def _array(executor: submitit.SlurmExecutor, jobs: Sequence[Job]) -> list[submitit.Job[None]]:
    with executor.batch():
        submitted = [executor.submit(job) for job in jobs]
    return submitted


def _patiently(submit: Callable[[], T]) -> T:
    """Submit again if a busy controller did not answer. If it accepted the jobs twice, leases prevent duplicate work."""
    for wait in WAITS:
        try:
            return submit()
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            if not TRANSIENT.search(str(error)):
                raise
            time.sleep(wait)
    return submit()


def job_name(sweep: str) -> str:
    """The name of a sweep's jobs: one word of letters, digits, dots and dashes for any name of a sweep."""
    return "fedbench-" + re.sub(r"[^\w.-]+", "-", sweep)


def slurm_parameters(cluster: Cluster) -> dict[str, Any]:
    """The `cluster` block as submitit names its options. Raises ConfigError."""
    parameters: dict[str, Any] = {
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
    requeue = {"requeue": more.pop("requeue", True)}
    further = requeue | (more.pop("additional_parameters", None) or {})
    further = {key: value for key, value in further.items() if value is not False}  # an option that is off is left out
    setup = [
        f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"export OMP_NUM_THREADS={cluster.cpus} MKL_NUM_THREADS={cluster.cpus}",
        *cluster.setup,
        *(more.pop("setup", None) or ()),
    ]
    for key, value in (parameters | more | further).items():
        # A line break would end the comment that sbatch reads and begin a command.
        if any(isinstance(part, str) and "\n" in part for part in (key, value)):
            raise ConfigError(f"cluster: a line break in {key!r}: {value!r}")
    return parameters | more | {"additional_parameters": further, "setup": setup}


def check_folder(folder: Path) -> None:
    """Raises ConfigError if sbatch would read a part of the path as a pattern, and write logs to another folder."""
    if "%" in str(folder):
        raise ConfigError(f"{folder}: sbatch replaces % in the names of logs; choose results without % in their path")


def _max_array_size() -> int:
    """How many jobs an array may have; a small number if the cluster does not say."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _slurm_config(), re.MULTILINE)
    return max(1, int(match.group(1))) if match else 100


def cluster_name() -> str:
    """The name of the cluster to which jobs are submitted; "" if it does not say."""
    match = re.search(r"^ClusterName\s*=\s*(\S+)", _slurm_config(), re.MULTILINE)
    return match.group(1) if match else ""


@cache
def _slurm_config() -> str:
    try:
        return _ask("scontrol", "show", "config").stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm for at most a minute. Raises OSError, subprocess.TimeoutExpired."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def cancel(jobs: Iterable[Mapping[str, Any]], sweep: str) -> tuple[list[str], str]:
    """Cancel the jobs of job.json files that are jobs of `sweep`, of this user, on this cluster.

    A scheduler reuses its ids, so job.json alone proves nothing. Returns the ids of live jobs that have another name, user
    or cluster, which are left alone, and "" or Slurm's objection to cancelling the others. Jobs that have already ended are
    ignored.
    """
    jobs, here = list(jobs), cluster_name()
    elsewhere = {job["id"] for job in jobs if job.get("cluster") and here and job["cluster"] != here}
    ids = {job["id"] for job in jobs if JOB_ID.fullmatch(job["id"])} - elsewhere
    strangers, user, name = set(elsewhere), str(os.getuid()), job_name(sweep)
    ordered = sorted(ids)
    for start in range(0, len(ordered), 500):
        part = ordered[start : start + 500]
        try:
            mains = sorted({id_.split("_")[0] for id_ in part})
            listed = _ask("squeue", "--noheader", "--array", "--format=%i|%U|%j", f"--jobs={','.join(mains)}")
            if listed.returncode and "Invalid job id" not in listed.stderr:
                return sorted(strangers), listed.stderr.strip()
            rows = [line.strip().split("|", 2) for line in listed.stdout.splitlines()]
            living = {row[0]: row[1:] for row in rows if len(row) == 3 and row[0] in part}
            ours = sorted(id_ for id_, owner in living.items() if owner == [user, name])
            strangers |= living.keys() - ours
            if ours:
                # Slurm checks these filters again at the moment of cancelling.
                done = _ask("scancel", f"--user={user}", f"--name={name}", *ours)
                if done.returncode and "Invalid job id" not in done.stderr:
                    return sorted(strangers), done.stderr.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            return sorted(strangers), str(error)
    return sorted(strangers), ""


class Queue:
    """The live Slurm jobs, from one call of squeue for all of them. It does not use sacct, which many clusters lack."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[str, str]] | None = {}  # {id: (state, reason)}; None: Slurm did not answer
        self._ended: dict[str, str] = {}  # the kind of end of each job, which Slurm soon forgets

    def ask(self, ids: Iterable[str]) -> None:
        """Look up the jobs `ids`, such as 12 or 12_3."""
        mains = sorted({id_.split("_")[0] for id_ in ids})
        if not mains:
            return
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(mains)}"]
        try:
            listed = _ask(*command)
        except (OSError, subprocess.TimeoutExpired):
            self._states = None
            return
        if listed.returncode and "Invalid job id" not in listed.stderr:  # the answer for a single forgotten job
            self._states = None
            return
        rows = [line.strip().split("|", 2) for line in listed.stdout.splitlines()]
        self._states = {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}
        self._ended |= {id_: ENDED[state] for id_, (state, _) in self._states.items() if state in ENDED}

    def lives(self, id_: str) -> bool:
        """Whether the job waits or runs. Also True if Slurm did not answer."""
        return self._states is None or (id_ in self._states and self._states[id_][0] not in ENDED)

    def why(self, id_: str) -> str:
        """Slurm's reason why a job waits."""
        state, reason = (self._states or {}).get(id_, ("", ""))
        return reason if state == "PENDING" and reason not in ("None", "") else ""

    def end(self, id_: str, log: Path) -> str:
        """The kind of failure that ended a job, from Slurm or from the last lines of the job's log."""
        kind = self._ended.get(id_, "lost")
        if kind != "lost":
            return kind
        try:
            with open(log, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                tail = file.read().decode(errors="replace")
        except OSError:
            return kind
        return next((ending for pattern, ending in IN_LOG if pattern.search(tail)), kind)
