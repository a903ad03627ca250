"""Sweeps on a real Slurm: arrays cut at the cluster's limit, jobs cancelled, requeued and out of time, and no sacct."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from slurm_cluster import Cluster

from fedbench.base import lease
from fedbench.base.records import MEASURED, RunFolder, run_folders
from fedbench.cli import sweep
from fedbench.jobs import slurm as slurm_words

pytestmark = pytest.mark.slurm

HOME = Path(__file__).resolve().parents[2]

SLOW_METHOD = '''
"""A linear head that takes its time, so that there is something to interrupt on any machine."""

import os
import time
from dataclasses import dataclass

from fedbench import method


@dataclass(frozen=True)
class Method(method.Method):
    """Waits at each merge."""

    def merge(self, server, report):
        """The mean, later."""
        time.sleep(float(os.environ.get("TEST_PAUSE", "0")))
        return {}
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    labels = np.arange(80) % 4
    images = np.random.default_rng(0).integers(0, 80, (80, 32, 32, 3)) + 40 * labels[:, None, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels, is_test=np.arange(80) % 20 < 4)
    return path


def sweep_file(folder: Path, data: Path, method: str, seeds: int, rounds: int, **cluster: Any) -> Path:
    content = {
        "base": {
            "dataset": {"name": "npz", "path": str(data)},
            "partition": "iid",
            "method": method,
            "rounds": rounds,
            "evaluate_every": rounds,
            "clients": {"number": 4, "per_round": 2},
        },
        "grid": {"seed": list(range(seeds))},
        "machine": {"checkpoint_seconds": 0, "data": str(folder / "data")},
        "cluster": {"timeout_min": 10, "mem_gb": 1.5, **cluster},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def until(probe: Callable[[], Any], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return value


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in folder.records()]


def test_arrays_are_cut_at_the_limit_of_the_cluster(slurm: Cluster, data: Path, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, data, "fedvpt", seeds=8, rounds=1, runs_per_job=2)
    results = tmp_path / "results"
    command = [str(file), "--cluster", "slurm", "--results", str(results)]

    assert sweep.main([*command, "--no-watch"]) == 0
    jobs = {folder.job()["id"] for folder in run_folders(results)}
    # 8 runs, two a job, MaxArraySize=3: an array of three jobs and a job alone
    assert len(jobs) == 4
    assert sorted("_" in job for job in jobs) == [False, True, True, True]

    assert sweep.main([*command, "--no-watch"]) == 0  # what is queued is not submitted again
    assert {folder.job()["id"] for folder in run_folders(results)} == jobs

    assert sweep.main([*command, "--watch"]) == 0
    assert [folder.status for folder in run_folders(results)] == ["done"] * 8
    assert subprocess.run(["sacct"], capture_output=True, check=False).returncode != 0  # and yet


def test_cancelled_requeued_and_timed_out_jobs_end_with_the_same_numbers(
    slurm: Cluster, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "methods").mkdir(parents=True)
    (tmp_path / "mine" / "methods" / "slow.py").write_text(SLOW_METHOD)
    monkeypatch.setenv("TEST_PAUSE", "0.25")
    file = sweep_file(tmp_path, data, "slow", seeds=3, rounds=40)
    results = tmp_path / "results"
    plugins = ["--plugins", str(tmp_path / "mine")]
    command = [str(file), *plugins, "--cluster", "slurm", "--results", str(results)]
    watcher = subprocess.Popen(
        [sys.executable, "-m", "fedbench.sweep", *command, "--watch"],
        cwd=HOME,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        folders = {folder.config()["run"]["seed"]: folder for folder in until(lambda: all_of(results, 3))}
        ids = {seed: folder.job()["id"] for seed, folder in folders.items()}

        under_way(folders[0])
        run("scancel", ids[0])  # for ever
        under_way(folders[1])
        run("scontrol", "requeue", ids[1])  # SIGTERM, SIGKILL, and again from the queue
        under_way(folders[2])
        run("scancel", "--signal=USR2", ids[2])  # what a job hears when its time is nearly over
        for seed in (1, 2):  # Slurm lets a requeued job wait for two minutes
            until(lambda id_=ids[seed]: start_now(id_))
        assert watcher.wait(timeout=400) == 1
        said = watcher.stdout.read() if watcher.stdout else ""
    finally:
        watcher.kill()
        watcher.wait()
        if watcher.stdout:
            watcher.stdout.close()
    assert [folders[seed].status for seed in (1, 2)] == ["done", "done"]
    assert [note["kind"] for note in folders[2].notes()] == ["timeout"]
    assert [folder.log.read_text().count("start of") for folder in folders.values()] == [1, 2, 2]
    log = folders[0].job()["log"]
    assert f"failed {folders[0].path.name} (cancelled): Slurm job {ids[0]} ended because it was cancelled" in said
    assert f"[log: {log}]" in said
    assert "CANCELLED" in Path(log).read_text()

    capfd.readouterr()
    assert sweep.main([str(file), *plugins, "--results", str(results), "--status", "--json"]) == 1
    status = json.loads(capfd.readouterr().out)
    assert status["counts"] == {"missing": 0, "pending": 0, "running": 0, "failed": 1, "done": 2}

    assert sweep.main([*command, "--watch"]) == 0  # the same command goes on where they were lost
    monkeypatch.setenv("TEST_PAUSE", "0")
    inline = tmp_path / "inline"
    assert sweep.main([str(file), *plugins, "--cluster", "inline", "--results", str(inline)]) == 0
    for folder in folders.values():
        assert numbers(folder) == numbers(RunFolder(inline / folder.path.name)) != []


def all_of(results: Path, count: int) -> list[RunFolder]:
    folders = [folder for folder in run_folders(results) if folder.job()]
    return folders if len(folders) == count else []


LONG = 30  # minutes: no run of these tests comes near it


def under_way(folder: RunFolder) -> None:
    until(lambda: folder.progress().get("round", 0) >= 2)
    assert folder.status == "running", "too short a run to be interrupted"


def start_now(id_: str) -> bool:
    """Once the job is back in the queue, and its last life has left its node."""
    waits = run("squeue", "--noheader", "--format=%T %r", f"--jobs={id_}").strip() == "PENDING BeginTime"
    if waits:
        time.sleep(3)
        run("scontrol", "update", f"JobId={id_}", "StartTime=now")
    return waits


def minutes_so_far(id_: str) -> int:
    """How many whole minutes a job has run."""
    *_, hours, minutes, _ = f"0:{run('squeue', '--noheader', '--format=%M', f'--jobs={id_}').strip()}".split(":")
    return 60 * int(hours) + int(minutes)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_time_limit_and_preemption_stop_at_a_round(
    slurm: Cluster, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real time limit, and a job of a partition that goes first; no checkpoint is ever due by the clock.

    Both are brought about once the runs are seen to be under way, so it does not matter how long a worker takes to start:
    the limit of the first run is then lowered so far that its job is due to be warned.
    """
    (tmp_path / "mine" / "methods").mkdir(parents=True)
    (tmp_path / "mine" / "methods" / "slow.py").write_text(SLOW_METHOD)
    monkeypatch.setenv("TEST_PAUSE", "0.25")
    results, plugins = tmp_path / "results", ["--plugins", str(tmp_path / "mine")]
    jobs = {}
    for seed, (rounds, more) in enumerate([(200, {"timeout_min": LONG}), (60, {"partition": "graceful"})]):
        file = sweep_file(tmp_path, data, "slow", seeds=1, rounds=rounds, **more)
        settings = ["--set", f"seed={seed}", "--set", "machine.checkpoint_seconds=100000"]
        assert sweep.main([str(file), *plugins, *settings, "--results", str(results), "--no-watch"]) == 0
        (folder,) = [f for f in run_folders(results) if f.config()["run"]["seed"] == seed]
        jobs[seed] = (folder, folder.job()["id"])
    limited, pushed = jobs[0][0], jobs[1][0]
    under_way(limited)
    run("scontrol", "update", f"JobId={jobs[0][1]}", f"TimeLimit={minutes_so_far(jobs[0][1]) + 1}")
    under_way(pushed)
    run("sbatch", "--partition=first", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    until(limited.notes)
    run("scontrol", "update", f"JobId={jobs[0][1]}", f"TimeLimit={LONG}")
    until(
        lambda: [start_now(id_) for _, id_ in jobs.values()] and limited.status == pushed.status == "done", seconds=1200
    )
    for folder, rounds in ((limited, 200), (pushed, 60)):
        log = folder.log.read_text()
        assert log.count("start of") == log.count("stopping; a later process continues the run") + 1 > 1
        assert [record["round"] for record in folder.records()] == [rounds]
    # Neither job was killed with work undone: each life ended by its own will, with a checkpoint.
    assert not [note for note in pushed.notes() if note["kind"] != "preempted"]
    assert [note["kind"] for note in limited.notes()] == ["timeout"]


def test_a_lost_node_gives_its_run_to_another(
    slurm: Cluster, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "methods").mkdir(parents=True)
    (tmp_path / "mine" / "methods" / "slow.py").write_text(SLOW_METHOD)
    monkeypatch.setenv("TEST_PAUSE", "0.25")
    results = tmp_path / "results"
    file = sweep_file(tmp_path, data, "slow", seeds=1, rounds=40)
    command = [str(file), "--plugins", str(tmp_path / "mine"), "--results", str(results)]
    assert sweep.main([*command, "--no-watch"]) == 0
    (folder,) = run_folders(results)
    under_way(folder)
    id_ = folder.job()["id"]
    node = run("squeue", "--noheader", "--format=%N", f"--jobs={id_}").strip()
    slurm.node("kill", node)
    owner = lease.owner_of(lease.claim_files(folder.path)[-1])
    assert owner is not None
    supervisor = int(Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (
        supervisor,
        owner.pid,
    ):  # with slurmd alone gone they would go on, and the next life would leave them to it
        os.kill(pid, signal.SIGKILL)
    try:
        run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        until(lambda: start_now(id_))
        assert sweep.main([*command, "--watch"]) == 0
    finally:
        slurm.node("start", node)
        # Refused where the node has come back by itself.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True)
    assert folder.log.read_text().count("start of") == 2


def test_cancel_ends_the_jobs_of_this_sweep_alone(
    slurm: Cluster, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PAUSE", "0.25")
    results = tmp_path / "results"
    file = sweep_file(tmp_path, data, "fedvpt", seeds=4, rounds=400)
    command = [str(file), "--results", str(results)]
    assert sweep.main([*command, "--no-watch"]) == 0
    ids = {folder.job()["id"] for folder in run_folders(results)}
    stranger = run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    try:
        assert sweep.main([*command, "--cancel"]) == 0
        until(lambda: not ids & set(run("squeue", "--noheader", "--array", "--format=%i").split()))
        assert stranger in run("squeue", "--noheader", "--format=%i").split()
        assert not any(folder.job() for folder in run_folders(results))
    finally:
        run("scancel", stranger)


SBATCH = """#!/bin/sh
# The real sbatch behind a controller that does not answer at first and takes no array of more than two jobs.
if [ ! -e {folder}/asked ]; then touch {folder}/asked; echo "sbatch: error: Socket timed out on send/recv" >&2; exit 1; fi
for last; do :; done
if grep -q "array=0-[2-9]" "$last"; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
exec {sbatch} "$@"
"""


def test_a_controller_that_is_busy_or_has_limits_is_asked_again(
    slurm: Cluster, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("sbatch")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH.format(folder=tmp_path, sbatch=real))
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_words, "WAITS", (0.1,))
    results = tmp_path / "results"
    file = sweep_file(tmp_path, data, "head_only", seeds=3, rounds=1)
    assert sweep.main([str(file), "--results", str(results), "--no-watch"]) == 0
    jobs = [folder.job()["id"] for folder in run_folders(results)]
    assert (tmp_path / "asked").exists()
    # MaxArraySize=3 gives one array of three; refused, it becomes one job and an array of two
    assert sorted("_" in job for job in jobs) == [False, True, True]
    assert sweep.main([str(file), "--results", str(results), "--cancel"]) == 0
