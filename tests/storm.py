"""A fault storm: random faults hit a sweep of short runs until it is done. Then every record is compared.

Faults hit processes, disks and the scheduler, and damage the files of runs.

By hand, with 100 faults over 24 runs: ``python tests/storm.py --cluster local`` or ``--cluster slurm``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from damage import Damages

HOME = Path(__file__).resolve().parents[1]
ROUNDS, EVERY = 30, 3

# FedAvg that waits while a file says so, so that faults keep step with rounds on any machine and waiting costs no CPU.
PAUSE = '''
"""FedAvg that takes its time."""

import time
from dataclasses import dataclass
from pathlib import Path

from fedbench import method

HOLD = Path(__file__).with_name("hold")


@dataclass(frozen=True)
class Aggregation(method.Aggregation):
    """Waits at each merge."""

    def merge(self, server, report, mean):
        """The mean, later."""
        while HOLD.exists():
            time.sleep(0.05)
        return {}
'''
# A copy of the sweep "on another host", whose processes are not to be seen from here; and claims that go stale quickly, in
# all processes alike and from their start: one that beats more slowly than another waits is taken for dead.
SITE = """
import os
import socket

from fedbench.base import lease

lease.HEARTBEAT_SECONDS = 0.5
if "TEST_HOST" in os.environ:
    socket.gethostname = lambda: os.environ["TEST_HOST"]
"""


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def numbers(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of every run without measured times."""
    from fedbench.base.records import MEASURED, run_folders

    return {
        folder.path.name: [
            {key: value for key, value in json.loads(line).items() if key not in MEASURED}
            for line in (folder.path / "records.jsonl").read_text().splitlines()
        ]
        for folder in run_folders(results)
    }


def _first_difference(want: list[dict[str, Any]], actual: list[dict[str, Any]]) -> str:
    rounds = [[record["round"] for record in records] for records in (want, actual)]
    if rounds[0] != rounds[1]:
        return f"rounds {rounds[1]}, not {rounds[0]}"
    pairs = ((a["round"], key, a.get(key), b.get(key)) for a, b in zip(want, actual, strict=True) for key in {*a, *b})
    return next(f"round {at}: {key} is {b!r}, not {a!r}" for at, key, a, b in pairs if a != b)


@dataclass
class Storm:
    """A sweep below `folder`, its faults, and what they did."""

    folder: Path
    cluster: str
    faults: int
    seeds: int
    seed: int = 0
    node: Callable[[str, str], None] | None = None  # kills ("kill") or starts ("start") the slurmd of a node
    damages: int = 0  # files damaged after each other fault
    stuck_seconds: float = 20  # without progress after which the next fault comes all the same
    named: Counter[str] = field(default_factory=Counter)  # runs that were named as failed between two commands, by kind
    injected: Counter[str] = field(default_factory=Counter)
    sweep: subprocess.Popen[bytes] | None = None
    commands: int = 0

    # -- the sweep ---------------------------------------------------------------------------------------------
    def write(self) -> None:
        """The dataset, the plug-in and the sweep file: 4 methods, `seeds` seeds, 4 classes of 20 images."""
        self.random = random.Random(self.seed)
        self.damaging = Damages(self.random)
        for part in ("mine/methods/aggregation", "site", "share", "quiet"):
            (self.folder / part).mkdir(parents=True)
        labels = np.arange(80) % 4
        images = np.random.default_rng(0).integers(0, 80, (80, 32, 32, 3)) + 40 * labels[:, None, None, None]
        np.savez(
            self.folder / "tiny.npz", images=images.astype(np.uint8), labels=labels, is_test=np.arange(80) % 20 < 4
        )
        (self.folder / "mine/methods/aggregation/pause.py").write_text(PAUSE)
        (self.folder / "site/sitecustomize.py").write_text(SITE)
        content = {
            "base": {
                "dataset": {"name": "npz", "path": str(self.folder / "tiny.npz")},
                "partition": "iid",
                "aggregation": "pause",
                "rounds": ROUNDS,
                "evaluate_every": EVERY,
                "clients": {"number": 6, "per_round": 3},
                "local": {"batch_size": 8, "optimizer": "adam"},
            },
            "grid": {
                "method": ["head_only", "fedvpt", {"name": "fedvpt", "prompt": "local"}, "pep_fedpt"],
                "seed": list(range(self.seeds)),
            },
            "machine": {"checkpoint_seconds": 0, "device": "cpu"},
            "cluster": {"timeout_min": 60, "workers": 2, "runs_per_job": 3, "mem_gb": 1.5},
        }
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(content))

    @property
    def results(self) -> Path:
        return self.folder / "share" / "box" / "results"

    def command(self, cluster: str, results: Path, *more: str) -> tuple[list[str], str]:
        """The command line of a sweep, and the PYTHONPATH that it needs."""
        command = [sys.executable, "-X", "faulthandler", "-m", "fedbench.sweep", str(self.folder / "sweep.yaml")]
        command += ["--cluster", cluster]
        command += ["--results", str(results), "--plugins", str(self.folder / "mine"), *more]
        storage = "quiet" if results.is_relative_to(self.folder / "quiet") else "share"
        command += ["--set", f"machine.data={self.folder / storage / 'data'}"]
        return command, os.pathsep.join([str(self.folder / "site"), str(HOME), os.environ.get("PYTHONPATH", "")])

    def start(self, cluster: str, results: Path, *more: str, **env: str) -> subprocess.Popen[bytes]:
        command, path = self.command(cluster, results, *more)
        log = open(self.folder / "sweep.log", "ab")  # noqa: SIM115 - the child's
        try:
            return subprocess.Popen(
                command, cwd=HOME, env={**os.environ, "PYTHONPATH": path, **env}, stdout=log, stderr=log
            )
        finally:
            log.close()

    def ended(self, sweep: subprocess.Popen[bytes], seconds: float = 300) -> int:
        """The exit status of a sweep's command. Raises AssertionError, with where it waits, if it takes too long."""
        try:
            return sweep.wait(seconds)
        except subprocess.TimeoutExpired:
            sweep.send_signal(signal.SIGABRT)  # its traceback goes to the log
            sweep.wait()
            log = (self.folder / "sweep.log").read_text(errors="replace")
            raise AssertionError(f"a command did not end in {seconds} s: {log[-8000:]}\n{self.look()}") from None

    # -- what it looks like ------------------------------------------------------------------------------------
    def folders(self) -> list[Any]:
        from fedbench.base.records import RunFolder

        with suppress(OSError):
            return [RunFolder(path) for path in sorted(self.results.iterdir()) if not path.name.startswith(".")]
        return []

    def look(self) -> list[Any]:
        """How `--status` sees every run; failures, by kind, and odd files are counted."""
        from fedbench.jobs import watch
        from fedbench.plan.planning import read_sweep

        runs = read_sweep(self.folder / "sweep.yaml", [self.folder / "mine"]).runs
        views = watch.Observer(self.results, runs).look()
        self.named.update(view.kind for view in views if view.state == "failed")
        self.named["odd files"] += len(watch.odd_files(self.results, runs, views))
        return views

    def progress(self) -> int:
        """Rounds done over all runs."""
        return sum(ROUNDS if f.status == "done" else f.progress().get("round", 0) for f in self.folders())

    def workers(self) -> list[tuple[Any, int]]:
        """(run, process) of the runs under way here."""
        from fedbench.base import lease, processes

        running = []
        for folder in self.folders():
            owner = lease.last_owner(folder.path)
            if owner is not None and processes.started_at(owner.pid) == owner.started:
                running.append((folder, owner.pid))
        return running

    def supervisors(self) -> list[int]:
        """The supervisors of those workers."""
        parents = set()
        for _, pid in self.workers():
            with suppress(OSError):
                parents.add(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
        return sorted(parents - {1})

    def jobs(self, state: str, reason: str = "") -> set[str]:
        """Slurm's jobs in a state, for a reason."""
        listed = subprocess.run(
            ["squeue", "--noheader", "--array", f"--states={state}", "--format=%i %r"],
            capture_output=True,
            text=True,
            check=False,
        )
        return {line.split()[0] for line in listed.stdout.splitlines() if line.split()[1:] == [reason] or not reason}

    # -- faults: each returns whether it happened ----------------------------------------------------------------
    def kill_worker(self) -> bool:
        return self._signal([pid for _, pid in self.workers()], signal.SIGKILL)

    def stop_worker(self) -> bool:
        return self._signal([pid for _, pid in self.workers()], signal.SIGTERM)

    def kill_supervisor(self) -> bool:
        return self._signal(self.supervisors(), signal.SIGKILL)

    def kill_supervisor_and_workers(self) -> bool:
        pids = [*self.supervisors(), *(pid for _, pid in self.workers())]
        return bool(pids) and all(self._signal([pid], signal.SIGKILL) for pid in pids)

    def freeze_worker(self) -> bool:
        pids = [pid for _, pid in self.workers()]
        if not pids:
            return False
        pid = self.random.choice(pids)
        if not self._signal([pid], signal.SIGSTOP):
            return False
        time.sleep(2)
        return self._signal([pid], signal.SIGCONT)

    def _signal(self, pids: list[int], number: int) -> bool:
        if not pids:
            return False
        try:
            os.kill(self.random.choice(pids), number)
        except ProcessLookupError:
            return False
        return True

    def kill_sweep(self) -> bool:
        if self.sweep is None or self.sweep.poll() is not None:
            return False
        self.sweep.kill()
        self.sweep.wait()
        return True

    def twin_sweep(self) -> bool:
        return self.ended(self.start(self.cluster, self.results, "--no-watch")) in (0, 1)

    def twin_sweep_of_another_host(self) -> bool:
        sweep = self.start(self.cluster, self.results, "--no-watch", TEST_HOST="elsewhere")
        return self.ended(sweep) in (0, 1)

    def cut_checkpoint(self) -> bool:
        """Half of the newest checkpoint of a run whose process has just been killed."""
        workers = self.workers()
        if not workers:
            return False
        folder, pid = self.random.choice(workers)
        path = folder.path / "checkpoint.safetensors"
        if not self._signal([pid], signal.SIGKILL) or not path.exists():
            return False
        os.truncate(path, path.stat().st_size // 2)
        return True

    def damage_file(self) -> bool:
        """Damage a file of a random run, whatever its state, and count the fault under the file's name."""
        folders = self.folders()
        damage = self.damaging.do_next(self.random.choice(folders).path) if folders else None
        if damage is not None:
            self.injected[str(damage)] += 1
        return damage is not None

    def full_disk(self) -> bool:
        fill = self.folder / "share" / "fill"
        try:
            with open(fill, "wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        except OSError:
            pass
        time.sleep(self.random.uniform(1, 4))
        fill.unlink()
        return True

    def share_away(self) -> bool:
        box = self.results.parent
        away = box.with_name("away")
        box.rename(away)
        time.sleep(self.random.uniform(1, 4))
        away.rename(box)
        return True

    def requeue(self) -> bool:
        return self._scontrol(["scontrol", "requeue"], self.jobs("RUNNING"))

    def cancel_job(self) -> bool:
        return self._scontrol(["scancel"], self.jobs("RUNNING"))

    def time_limit_near(self) -> bool:
        return self._scontrol(["scancel", "--signal=USR2"], self.jobs("RUNNING"))

    def _scontrol(self, command: list[str], jobs: set[str]) -> bool:
        if not jobs:
            return False
        return (
            subprocess.run([*command, self.random.choice(sorted(jobs))], capture_output=True, check=False).returncode
            == 0
        )

    def preempt(self) -> bool:
        """A job of a partition that goes first takes a node for a moment."""
        if not self.jobs("RUNNING"):
            return False
        command = ["sbatch", "--partition=first", "--output=/dev/null", "--wrap=sleep 1", "--job-name=first"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def kill_slurmd(self) -> bool:
        """SIGKILL of a node's slurmd, which comes back; its jobs may live on."""
        if self.node is None:
            return False
        node = self.random.choice(["n1", "n2"])
        self.node("kill", node)
        time.sleep(2)
        self.node("start", node)
        return True

    def lose_node(self) -> bool:
        """A node is gone with its jobs, and comes back."""
        if self.node is None:
            return False
        node = self.random.choice(["n1", "n2"])
        self.node("kill", node)
        for state in (["state=down", "reason=storm"], ["state=resume"]):
            subprocess.run(["scontrol", "update", f"nodename={node}", *state], capture_output=True, check=False)
        self.node("start", node)
        return True

    def kinds(self) -> list[Callable[[], bool]]:
        both = [self.kill_worker, self.stop_worker, self.freeze_worker, self.kill_sweep, self.twin_sweep]
        both += [self.cut_checkpoint, self.share_away, self.kill_supervisor_and_workers]
        both += [self.full_disk] if os.path.ismount(self.folder / "share") else []
        if self.cluster == "local":
            return [*both, self.kill_supervisor, self.twin_sweep_of_another_host]
        slurm = [self.requeue, self.cancel_job, self.time_limit_near, self.preempt, self.kill_slurmd, self.lose_node]
        return [*both, *slurm]

    # -- the storm ---------------------------------------------------------------------------------------------
    def blow(self, seconds: float) -> None:
        """Faults at even steps of the sweep's progress, and the same command again whenever it has ended, until all is
        done. Raises AssertionError where that takes longer than `seconds`."""
        end, total = time.monotonic() + seconds, 4 * self.seeds * ROUNDS
        hold = self.folder / "mine/methods/aggregation/hold"
        order: list[Callable[[], bool]] = []
        hit_at, waited = time.monotonic(), set[str]()
        while True:
            assert time.monotonic() < end, (
                f"not done in {seconds} s: {self.progress()} of {total} rounds; {self.injected}"
            )
            if self.sweep is None or self.sweep.poll() is not None:
                if self.sweep is not None and self.sweep.returncode == 0 and sum(self.injected.values()) >= self.faults:
                    hold.unlink(missing_ok=True)  # the repairs that follow must not wait
                    return
                # A run whose run.yaml was damaged while its job began has failed, and says so; a person tries it again.
                more = ["--retry-failed"] if self.damages and self.commands and self.look() else []
                self.sweep = self.start(self.cluster, self.results, "--watch", *more)
                self.commands += 1
            if self.cluster == "slurm":
                waiting = self.jobs("PENDING", reason="BeginTime")
                for job in waiting & waited:  # as an operator does who has not the two minutes
                    subprocess.run(
                        ["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False
                    )
                waited = waiting
            count = sum(self.injected.values())
            ahead = count < self.faults and self.progress() > (count + 1) * total * 0.95 / self.faults
            hold.touch() if ahead else hold.unlink(missing_ok=True)
            stuck = time.monotonic() - hit_at > self.stuck_seconds
            if count < self.faults and (self.progress() > count * total * 0.95 / self.faults or (stuck and count)):
                order = order or self.random.sample(self.kinds(), len(self.kinds()))
                fault = order.pop()
                if fault():
                    self.injected[fault.__name__] += 1
                    hit_at = time.monotonic()
                    say(f"{time.strftime('%H:%M:%S')} {count + 1:3} {fault.__name__} at {self.progress()} rounds")
                    for _ in range(self.damages):
                        with suppress(OSError):  # the file or the share is just moving
                            self.damage_file()
            time.sleep(0.1)

    def settle(self) -> None:
        """Repeat the command until every run is done and whole. Damage to runs that were done is seen only now.

        Raises AssertionError where a run that counts as done is not, or one that does not has no reason.
        """
        for _ in range(5):
            views = self.look()
            assert all(view.reason for view in views if view.state == "failed"), views
            if all(view.state == "done" for view in views):
                return
            self.commands += 1
            self.ended(self.start(self.cluster, self.results, "--watch", "--retry-failed"))
        raise AssertionError(f"not settled: {self.look()}")

    def compare(self) -> dict[str, Any]:
        """The figures; `differences` names every record that is not that of a quiet sweep in one process."""
        quiet = self.folder / "quiet" / "results"
        assert self.ended(self.start("inline", quiet, "--no-watch")) == 0
        want, actual = numbers(quiet), numbers(self.results)
        differences = [
            f"{name}: {_first_difference(want.get(name, []), actual.get(name, []))}"
            for name in sorted(want.keys() | actual.keys())
            if want.get(name) != actual.get(name)
        ]
        for name in want:
            assert [record["round"] for record in want[name]] == list(range(EVERY, ROUNDS + 1, EVERY))
            files = [root / name / "clients.parquet" for root in (quiet, self.results)]
            if files[0].read_bytes() != files[1].read_bytes():
                differences.append(f"{name}/clients.parquet")
        notes: Counter[str] = Counter()
        lives = 0
        for folder in self.folders():
            notes.update(note["kind"] for note in folder.notes())
            if folder.log.exists():
                lives += folder.log.read_bytes().count(b"start of ")
        return {
            "cluster": self.cluster,
            "faults": sum(self.injected.values()),
            "by_kind": dict(self.injected.most_common()),
            "named": dict(self.named),
            "sweep_commands": self.commands,
            "runs": len(want),
            "tries_of_runs": lives,
            "noted": dict(notes),
            "records": sum(len(records) for records in want.values()),
            "differences": differences,
        }


@contextmanager
def share(folder: Path) -> Iterator[None]:
    """A small disk of its own for the results where root may have one; else no disk is ever full."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def storm(
    folder: Path, cluster: str, faults: int, seeds: int, seconds: float, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """Blow and compare; returns the figures."""
    made = Storm(folder, cluster, faults, seeds, seed, **more)
    made.write()
    with share(folder / "share"):
        made.results.parent.mkdir()
        began = time.monotonic()
        try:
            made.blow(seconds)
            made.settle()
            return made.compare() | {"seconds": round(time.monotonic() - began), "seed": seed}
        finally:
            if made.sweep is not None and made.sweep.poll() is None:
                made.sweep.kill()
                made.sweep.wait()
            with suppress(OSError):
                for env in ({}, {"TEST_HOST": "elsewhere"}):
                    made.ended(made.start(cluster, made.results, "--cancel", **env), 60)


def main() -> None:
    """The full storm."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is cleared away
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", choices=("local", "slurm"), required=True)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6, help="runs: four times as many")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--damages", type=int, default=0, help="files damaged after each fault; they count as faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("storm"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    if options.cluster == "local":
        figures = storm(
            folder, "local", options.faults, options.seeds, options.seconds, options.seed, damages=options.damages
        )
    else:
        sys.path.insert(0, str(HOME / "tests"))
        from slurm_cluster import cluster

        with cluster(folder / "slurm") as made:
            figures = storm(
                folder, "slurm", options.faults, options.seeds, options.seconds, options.seed, node=made.node
            )
    say(json.dumps(figures, indent=1))
    raise SystemExit(1 if figures["differences"] else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(HOME))
    main()
