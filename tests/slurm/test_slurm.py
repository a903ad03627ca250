"""Sweeps on a real Slurm: arrays cut at the cluster's limit, jobs cancelled, requeued and out of time, and no sacct."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedbench import launch, sweep
from fedbench.records import MEASURED, RunFolder, run_folders

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


def until(found: Callable[[], Any], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return value


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in folder.records()]


def test_arrays_are_cut_at_the_limit_of_the_cluster(slurm: Path, data: Path, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, data, "fedvpt", seeds=8, rounds=1, runs_per_job=2)
    results = tmp_path / "results"
    command = [str(file), "--cluster", "slurm", "--results", str(results)]

    assert sweep.main([*command, "--no-watch"]) == 0
    jobs = {launch.job_of(folder)["id"] for folder in run_folders(results)}
    # 8 runs, two a job, MaxArraySize=3: an array of three jobs and a job alone
    assert len(jobs) == 4
    assert sorted("_" in job for job in jobs) == [False, True, True, True]

    assert sweep.main([*command, "--no-watch"]) == 0  # what is queued is not submitted again
    assert {launch.job_of(folder)["id"] for folder in run_folders(results)} == jobs

    assert sweep.main([*command, "--watch"]) == 0
    assert [folder.status for folder in run_folders(results)] == ["done"] * 8
    assert subprocess.run(["sacct"], capture_output=True, check=False).returncode != 0  # and yet


def test_cancelled_requeued_and_timed_out_jobs_end_with_the_same_numbers(
    slurm: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
        ids = {seed: launch.job_of(folder)["id"] for seed, folder in folders.items()}

        under_way(folders[0])
        run("scancel", ids[0])  # for ever
        under_way(folders[1])
        run("scontrol", "requeue", ids[1])  # SIGTERM, SIGKILL, and again from the queue
        under_way(folders[2])
        run("scancel", "--signal=USR2", ids[2])  # what a job hears when its time is nearly over
        for seed in (1, 2):  # Slurm lets a requeued job wait for two minutes
            until(lambda id_=ids[seed]: start_now(id_))
        assert watcher.wait(timeout=150) == 1
        said = watcher.stdout.read() if watcher.stdout else ""
    finally:
        watcher.kill()
        watcher.wait()
        if watcher.stdout:
            watcher.stdout.close()
    assert [folders[seed].status for seed in (1, 2)] == ["done", "done"]
    log = launch.job_of(folders[0])["log"]
    assert f"failed {folders[0].path.name} (lost): Slurm job {ids[0]} ended" in said
    assert f"[log: {log}]" in said
    assert "CANCELLED" in Path(log).read_text()

    capfd.readouterr()
    assert sweep.main([str(file), *plugins, "--results", str(results), "--status", "--json"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert told["counts"] == {"missing": 0, "pending": 0, "running": 0, "failed": 1, "done": 2}

    assert sweep.main([*command, "--watch"]) == 0  # the same command goes on where they were lost
    monkeypatch.setenv("TEST_PAUSE", "0")
    inline = tmp_path / "inline"
    assert sweep.main([str(file), *plugins, "--cluster", "inline", "--results", str(inline)]) == 0
    for folder in folders.values():
        assert numbers(folder) == numbers(RunFolder(inline / folder.path.name)) != []


def all_of(results: Path, count: int) -> list[RunFolder]:
    found = [folder for folder in run_folders(results) if launch.job_of(folder)]
    return found if len(found) == count else []


def under_way(folder: RunFolder) -> None:
    until(lambda: folder.progress().get("round", 0) >= 2)
    assert folder.status == "running", "too short a run to be interrupted"


def start_now(id_: str) -> bool:
    """Once the job is back in the queue."""
    state = run("squeue", "--noheader", "--format=%T", f"--jobs={id_}").strip()
    if state == "PENDING":
        run("scontrol", "update", f"JobId={id_}", "StartTime=now")
    return state == "PENDING"


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
