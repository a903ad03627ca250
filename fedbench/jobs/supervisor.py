"""Supervises workers: one process for each slot, which is started again when it dies and stopped when the job must leave.

A supervisor imports no torch, so it is small. It survives what kills a worker: a crash, or the kernel when memory runs out.
Slurm executes `Job`; the local machine executes ``python -m fedbench.jobs.supervisor``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbench.base import lease, processes
from fedbench.base.processes import Owner
from fedbench.base.records import RunFolder
from fedbench.jobs import failures
from fedbench.jobs.failures import EXIT_BROKEN_ACCELERATOR, EXIT_LEFT

GRACE_SECONDS = 60.0  # for a round to end after a signal; after that, the run resumes from its last checkpoint
BROKEN = 3  # a slot is given up after this many deaths in a row of processes that held no run: they cannot start
CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")


@dataclass
class Slot:
    """A place for one run at a time: its own runs, the runs of other slots for later, and its GPU."""

    names: Sequence[str]
    spare: Sequence[str] = ()
    device: str | None = None
    process: subprocess.Popen[bytes] | None = None
    over: bool = False
    deaths_without_run: int = 0


@dataclass
class Supervisor:
    """The processes of some slots. `leaving`: why they must leave, "" or a kind of failure."""

    results: Path
    slots: list[Slot]
    threads: int
    leaving: str = ""
    kill_at: float = field(default=float("inf"))

    def run(self) -> None:
        """Supervise until all runs have ended or the job must leave."""
        kills = _out_of_memory_kills()
        while not all(slot.over for slot in self.slots):
            for slot in self.slots:
                if slot.over:
                    continue
                if slot.process is None:
                    slot.over = bool(self.leaving)
                    slot.process = None if slot.over else self._start(slot)
                elif (code := slot.process.poll()) is not None:
                    out_of_memory = _out_of_memory_kills() > kills
                    kills = _out_of_memory_kills()
                    self._handle_end(slot, code, out_of_memory)
                elif time.monotonic() > self.kill_at:
                    slot.process.kill()
            time.sleep(0.05)

    def leave(self, kind: str, seconds: float = GRACE_SECONDS) -> None:
        """Let every worker stop at its next round boundary; kill those that need more than `seconds`."""
        if not self.leaving:
            self.leaving, self.kill_at = kind, time.monotonic() + seconds
        for slot in self.slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.terminate()

    def _start(self, slot: Slot) -> subprocess.Popen[bytes]:
        env = dict(os.environ)
        if slot.device is not None:
            env["CUDA_VISIBLE_DEVICES"] = slot.device
        work = {"names": list(slot.names), "spare": list(slot.spare), "threads": self.threads}
        process = subprocess.Popen(
            [sys.executable, "-m", "fedbench.jobs.job", str(self.results)], stdin=subprocess.PIPE, env=env
        )
        assert process.stdin is not None  # noqa: S101 - for the type checker
        try:
            process.stdin.write(json.dumps(work).encode())
            process.stdin.close()
        except OSError:  # it is already dead, which `run` handles
            pass
        if self.leaving:  # the signal came while the worker started
            process.terminate()
        return process

    def _handle_end(self, slot: Slot, code: int, out_of_memory: bool) -> None:
        """Note how a worker ended, and start another one unless the job leaves or workers cannot start."""
        process, slot.process = slot.process, None
        if code == 0 or (code in (EXIT_LEFT, EXIT_BROKEN_ACCELERATOR) and self.leaving):
            slot.over = True
            return
        if code == EXIT_LEFT:  # only the worker received a signal: its runs continue here
            return
        if code == EXIT_BROKEN_ACCELERATOR:  # the worker has already noted that for its run
            _say("a worker ended (its accelerator failed); another begins")
            return
        killed = self.leaving and code in (-signal.SIGKILL, -signal.SIGTERM)
        kind, reason = _kind(code, out_of_memory)
        held = [] if process is None else self._held_by(process.pid, [*slot.names, *slot.spare])
        for folder, owner in held:
            who = {"pid": owner.pid, "started": owner.started}
            if killed:
                folder.note(
                    kind=self.leaving, reason="no round ended in time; it resumes from its last checkpoint", **who
                )
            elif not failures.note(folder, kind, reason, **who):
                folder.fail(kind, reason)
        slot.deaths_without_run = 0 if held else slot.deaths_without_run + 1
        slot.over = bool(self.leaving) or slot.deaths_without_run >= BROKEN
        _say(f"a worker ended ({reason}){'' if slot.over else '; another begins'}")

    def _held_by(self, pid: int, names: Sequence[str]) -> list[tuple[RunFolder, Owner]]:
        """The unfinished runs among `names` that the process `pid` held."""
        held = []
        for name in names:
            folder = RunFolder(self.results / name)
            owner = lease.last_owner(folder.path)
            if owner is not None and (owner.host, owner.pid) == (processes.host(), pid) and folder.status != "done":
                held.append((folder, owner))
        return held


def _kind(code: int, out_of_memory: bool) -> tuple[str, str]:
    if code >= 0:
        return "crashed", f"its process ended with exit code {code}"
    known = {int(number) for number in signal.Signals}
    name = signal.Signals(-code).name if -code in known else f"signal {-code}"
    if out_of_memory and code == -signal.SIGKILL:
        return "out_of_memory", "its process was killed by the system when memory ran out"
    return ("crashed" if name in CRASHES else "killed"), f"its process was killed by {name}"


def _out_of_memory_kills() -> int:
    """How many processes this system has killed because of memory since its start; 0 if it does not count them."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {text}\n")
    sys.stdout.flush()


def assign_slots(groups: Sequence[Sequence[str]], count: int, devices: Sequence[str] | None) -> list[Slot]:
    """`count` slots, which get the groups of runs in turn, GPU by GPU. A slot whose runs are done helps the others."""
    count = max(1, min(count, len(groups)))
    shares = [tuple(name for group in groups[i::count] for name in group) for i in range(count)]
    return [
        Slot(
            share,
            tuple(name for k in range(1, count) for name in reversed(shares[(i + k) % count])),
            devices[i % len(devices)] if devices else None,
        )
        for i, share in enumerate(shares)
    ]


# -- what Slurm executes ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """The object that submitit pickles and calls in a Slurm job. It holds names only, since plug-ins cannot be pickled.

    `groups`: runs that one process should do (see `fedbench.jobs.grouping`); `warning`: how many seconds before the time
    limit Slurm sends its signal; `side_by_side`: how many runs share a GPU.
    """

    results: str
    groups: tuple[tuple[str, ...], ...]
    cpus: int
    side_by_side: int
    warning: int

    @property
    def names(self) -> tuple[str, ...]:
        """All its runs."""
        return tuple(name for group in self.groups for name in group)

    def __call__(self) -> None:
        """Do the runs. Near the time limit, or on preemption, stop at a round boundary and requeue the job."""
        devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        count = self.side_by_side * max(1, len(devices))
        slots = assign_slots(self.groups, count, devices)
        supervisor = Supervisor(Path(self.results), slots, max(1, self.cpus // count))
        grace = max(1.0, self.warning * 0.7)
        signal.signal(signal.SIGTERM, lambda *_: supervisor.leave("preempted", grace))
        signal.signal(signal.SIGUSR2, lambda *_: supervisor.leave("timeout", grace))
        supervisor.run()
        rest = [folder for name in self.names if (folder := RunFolder(Path(self.results) / name)).status != "done"]
        if rest and (supervisor.leaving == "timeout" or (supervisor.leaving == "preempted" and _still_running())):
            self._requeue(supervisor.leaving, rest)

    def _requeue(self, kind: str, rest: Sequence[RunFolder]) -> None:
        """Requeue the job, unless none of its runs makes progress any more."""
        for folder in rest:
            if not failures.note(folder, kind, "the job had to leave its node") and folder.status != "failed":
                attempts = failures.MORE_ATTEMPTS[kind] + 1
                folder.fail(kind, f"no further round in {attempts} starts of the job; is its time limit too short?")
        if all(folder.status == "failed" for folder in rest):
            return
        _say(f"leaving the node ({kind}): back into the queue")
        # Not SLURM_JOB_ID: for a job of an array, that may be the number of the whole array.
        command = ["scontrol", "requeue", processes.process().job]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            _say(f"Slurm does not requeue the job; the next sweep will submit it again: {done.stderr.strip()}")
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)  # Slurm ends this process during the wait
        raise SystemExit(1)


def _still_running() -> bool:
    """Whether Slurm only asked this job to leave: a job that Slurm is about to end or requeue is in another state.

    Slurm counts a job that leaves within its grace time as completed and does not requeue it.
    """
    command = ["squeue", "--noheader", "--array", "--format=%T", f"--jobs={processes.process().job}"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() == "RUNNING"


# -- what the local machine executes ---------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: a results folder, and the sweep's name, by which `--cancel` recognises the process.

    Reads {"groups", "count", "devices", "threads"} as JSON from stdin.
    """
    results, _ = sys.argv[1:] if arguments is None else arguments
    work: Mapping[str, Any] = json.load(sys.stdin)
    supervisor = Supervisor(
        Path(results), assign_slots(work["groups"], work["count"], work["devices"]), work["threads"]
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.leave("cancelled"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervisor.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
