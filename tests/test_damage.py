"""Every file of runs damaged in every way, on runs that were interrupted, have failed or are done: nothing is lost silently."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from damage import FILES, WAYS, Damages
from workplace import Workplace, numbers

from fedbench.base import lease, processes
from fedbench.base.records import RunFolder
from fedbench.jobs import job, launch
from fedbench.jobs.stop_request import stop_request
from fedbench.run.simulation import Stopped

RUNS, ROUNDS = 13, 3


def interrupt(place: Workplace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do two rounds of a run, as a signal leaves it."""

    def report_and_stop(self: RunFolder, **progress: Any) -> None:
        reported(self, **progress)
        stop_request.received = progress["round"] == ROUNDS - 2  # seen after the next round

    reported = RunFolder.report_progress
    monkeypatch.setattr(RunFolder, "report_progress", report_and_stop)
    with pytest.raises(Stopped):
        job.run_job(place.results, [folder.path.name])
    monkeypatch.undo()
    stop_request.received = False
    assert folder.progress()["round"] == ROUNDS - 1


def status(place: Workplace, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """What `--status` says: {run: view}, and all its lines on odd files."""
    capsys.readouterr()
    assert place.run("--status", "--json") in (0, 1)
    report = json.loads(capsys.readouterr().out)
    return {run["name"]: run for run in report["runs"]}, "\n".join(report["odd_files"])


@pytest.mark.parametrize("count", [80, pytest.param(500, marks=pytest.mark.slow)])
def test_no_damage_loses_anything_silently(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Workplace(tmp_path)
    place.write(methods=["head_only"], seeds=list(range(RUNS)), rounds=ROUNDS)
    folders = place.plan()
    for folder in folders:
        interrupt(place, folder, monkeypatch)
    dead = {"host": processes.host(), "pid": 2**22 + 1, "started": "1"}
    taken = {"scheduler": "local", "owners": [dead], "log": "log", "sweep": "sweep"}
    launch.remember(place.results, [folder.path.name for folder in folders], taken)
    for folder in folders[:2]:
        folder.note(kind="error", reason="planted", round=ROUNDS - 1)
        folder.fail("error", "planted")
    interrupted = tmp_path / "interrupted"
    shutil.copytree(place.results, interrupted)
    for folder in folders:
        folder.clear_failure()
    job.run_job(place.results, [folder.path.name for folder in folders])
    want = {folder.path.name: (numbers(folder), clients(folder)) for folder in folders}
    done = tmp_path / "finished"
    shutil.copytree(place.results, done)

    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.001)
    damages, injected, unequal = Damages(random.Random(0)), Counter[str](), 0
    states = itertools.cycle([interrupted, done])
    while sum(injected.values()) < count:
        shutil.rmtree(place.results)
        shutil.copytree(next(states), place.results)
        damaged = {}
        for folder in folders:
            if (damage := damages.do_next(folder.path)) is not None:
                damaged[folder.path.name] = str(damage)
        injected.update(damaged.values())
        views, odd = status(place, capsys)
        for name, view in views.items():
            if view["state"] == "done":  # then it is whole, whatever was damaged
                assert (numbers(RunFolder(place.results / name)), clients(RunFolder(place.results / name))) == want[
                    name
                ]
        assert place.run("--cluster", "inline", "--no-watch") in (0, 1)
        views, odd = status(place, capsys)
        for name, view in views.items():
            folder = RunFolder(place.results / name)
            if view["state"] == "done":
                assert (numbers(folder), clients(folder)) == want[name], damaged.get(name)
            else:
                unequal += 1
                assert view["state"] == "failed", damaged.get(name)
                assert view["reason"], damaged.get(name)
                assert view["kind"] == "error" or str(folder.path) in view["reason"] + odd, damaged.get(name)
    assert {damage.split()[1] for damage in injected} == set(FILES)
    assert {damage.split()[0] for damage in injected} == set(WAYS)
    assert unequal > 0  # runs that had failed before stay failed


def clients(folder: RunFolder) -> bytes:
    return (folder.path / "clients.parquet").read_bytes()
