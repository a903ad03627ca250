"""`--cancel` and other commands that act on a results folder touch only jobs and processes of this sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from workplace import Workplace, until

from fedbench.base import processes
from fedbench.jobs import cancellation, launch, slurm
from fedbench.plan.config import Cluster, ConfigError
from fedbench.plan.planning import read_sweep

# squeue answers from a table, scancel and scontrol write down how they were called.
FAKE = """#!{python}
import pathlib, sys
folder, name = pathlib.Path({folder!r}), pathlib.Path(sys.argv[0]).name
with open(folder / "calls", "a") as file:
    file.write(" ".join([name, *sys.argv[1:]]) + "\\n")
if name == "squeue" and any("%U" in word for word in sys.argv):
    print((folder / "jobs").read_text(), end="")
if name == "squeue" and any("%T" in word for word in sys.argv):
    for line in (folder / "jobs").read_text().splitlines():
        print(line.split("|")[0] + "|RUNNING|None")
if name == "scontrol":
    print("ClusterName = here")
"""


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """A Slurm that knows the jobs it is told; call it with rows ``id|user|name``, and it returns scancel's calls so far."""
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    for name in ("squeue", "scancel", "scontrol", "sbatch"):
        (folder / "bin" / name).write_text(FAKE.format(python=sys.executable, folder=str(folder)))
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    slurm._slurm_config.cache_clear()

    def with_jobs(*rows: str) -> list[str]:
        (folder / "jobs").write_text("".join(f"{row}\n" for row in rows))
        calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
        return [call for call in calls if call.startswith("scancel")]

    yield with_jobs
    slurm._slurm_config.cache_clear()


def job_json(place: Workplace, **job: Any) -> None:
    """One planned run of the sweep whose job.json says `job`."""
    place.write(seeds=[0])
    (folder,) = place.plan()
    whole = {"scheduler": "slurm", "log": "log", "sweep": "sweep"} | job
    (folder.path / "job.json").write_text(json.dumps(whole))


ME = os.getuid()


@pytest.mark.parametrize(
    ("row", "job"),
    [
        (f"12|{ME}|other-job", {"id": "12"}),  # the scheduler used the id again
        ("12|99999|fedbench-sweep", {"id": "12"}),
        (f"12|{ME}|fedbench-sweep2", {"id": "12"}),
        (f"12_3|{ME}|fedbench-other", {"id": "12_3"}),
        (f"12|{ME}|fedbench-sweep", {"id": "12", "cluster": "elsewhere"}),
    ],
)
def test_a_job_that_is_not_of_this_sweep_is_left_alone(
    place: Workplace, fake_slurm: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], row: str, job: Any
) -> None:
    fake_slurm(row)
    job_json(place, **job)
    assert place.run("--cancel") == 1
    assert fake_slurm() == []
    said = capsys.readouterr().out
    assert "0 runs cancelled" in said
    assert f"Left alone, since they are not jobs of this sweep: Slurm jobs {job['id']}" in said


def test_the_jobs_of_this_sweep_are_cancelled_by_id_user_and_name(
    place: Workplace, fake_slurm: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm(f"12_3|{ME}|fedbench-sweep", f"12_4|{ME}|fedbench-sweep")
    job_json(place, id="12_3", cluster="here")
    assert place.run("--cancel") == 0
    assert fake_slurm() == [f"scancel --user={ME} --name=fedbench-sweep 12_3"]
    assert "1 runs cancelled" in capsys.readouterr().out
    assert not place.folders[0].job()


@pytest.mark.parametrize("id_", ["--user=root", "-u root", "12;13", "12_", "", "*", "12_[1-3]"])
def test_an_id_that_is_none_reaches_no_command(
    place: Workplace, fake_slurm: Callable[..., list[str]], id_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm()
    job_json(place, id=id_)
    assert place.run("--cancel") == 0
    assert fake_slurm() == []
    assert place.run("--status") == 0
    assert f"id: expected the id of a Slurm job, found {id_!r}" in capsys.readouterr().out


def test_a_process_that_is_none_of_ours_is_not_signalled(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        until(lambda: processes.command_line(stranger.pid)[1:] == ["-c", "input()"])
        job_json(place, scheduler="local", owners=[asdict(processes.process(stranger.pid))])
        assert place.run("--cancel") == 1
        assert f"not processes of this sweep: {stranger.pid}" in capsys.readouterr().out
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["python", "-m", "fedbench.jobs.supervisor", "{results}", "sweep"], True),
        (["python", "-m", "fedbench.jobs.supervisor", "{results}", "another"], False),
        (["python", "-m", "fedbench.jobs.supervisor", "/elsewhere", "sweep"], False),
        (["python", "-m", "fedbench.sweep", "sweep.yaml", "--cluster", "inline"], True),
        (["python", "-u", "-m", "fedbench.sweep", "sweep.yaml"], True),
        (["python", "-m", "fedbench", "sweep", "sweep.yaml"], True),
        (["python", "/usr/bin/fedbench", "sweep", "sweep.yaml"], True),
        (["python", "/usr/bin/fedbench", "figures"], False),
        (["vim", "sweep"], False),
        ([], False),
    ],
)
def test_a_process_of_a_sweep_is_known_by_its_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], ours: bool
) -> None:
    line = [word.format(results=tmp_path) for word in words]
    monkeypatch.setattr(processes, "command_line", lambda pid: line)
    assert launch.is_ours({"pid": 7}, tmp_path, "sweep") == ours


def test_a_supervisor_of_this_sweep_is_ended(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_PAUSE", "0.2")
    place.write(methods=["slow"], seeds=[0], rounds=500, cluster={"workers": 1})
    assert place.run("--cluster", "local", "--no-watch") == 0
    (folder,) = place.folders
    until(lambda: folder.progress().get("round", 0) >= 1)
    (owner,) = folder.job()["owners"]
    assert launch.is_ours(owner, place.results, "sweep")
    sweep = read_sweep(place.file, [place.path / "mine"])
    assert cancellation.cancel(sweep, place.results) == cancellation.Cancelled(1, [], True)
    assert not launch.is_alive(owner)


# -- options of sbatch -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, {"requeue": True}),
        ({"requeue": False}, {}),
        ({"requeue": True}, {"requeue": True}),
        ({"additional_parameters": {"requeue": False}}, {}),
        ({"additional_parameters": {"hold": True, "no_kill": False}}, {"requeue": True, "hold": True}),
    ],
)
def test_requeue_false_leaves_the_line_out(options: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    parameters = slurm.slurm_parameters(Cluster(slurm=dict(options)))
    assert parameters["additional_parameters"] == line
    assert "requeue" not in parameters


def test_results_with_a_percent_sign_are_refused_on_slurm_before_anything_is_written(
    place: Workplace, fake_slurm: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm()
    place.results = place.path / "50%j" / "results"
    place.results.parent.mkdir()
    assert place.run("--cluster", "slurm", "--no-watch") == 2
    assert "sbatch replaces % in the names of logs" in capsys.readouterr().err
    assert not place.results.exists()
    with pytest.raises(ConfigError, match="50%j"):
        slurm.check_folder(place.results)


# -- a sweep that waits for another ------------------------------------------------------------------------------
def test_a_sweep_that_waits_for_a_stopped_one_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SILENT_SECONDS", 0.1)
    script = "import sys, pathlib\nfrom fedbench.jobs import launch\n"
    script += "with launch.planning(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    input()\n"
    command = [sys.executable, "-c", script, str(tmp_path / "results")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        other.send_signal(signal.SIGCONT)
        other.stdin.write("\n")  # type: ignore[union-attr]
        other.stdin.close()  # type: ignore[union-attr]

    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.send_signal(signal.SIGSTOP)
        until(lambda: processes.is_stopped(other.pid))
        with launch.planning(tmp_path / "results", hear):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()  # type: ignore[union-attr]
    (text,) = said
    host = processes.host().split("/")[0]
    assert text.startswith(
        f"waiting: process {other.pid} on {host} is planning a sweep in {tmp_path / 'results'}; it is"
    )
    assert f"`kill -CONT {other.pid}`" in text
