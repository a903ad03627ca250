"""The sweep's command line on real runs: what it starts and leaves alone, its messages, and interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from workplace import MERGE, Workplace, files, numbers, until

from fedbench.base import lease, processes
from fedbench.base.records import RunFolder, config_hash, record_line
from fedbench.cli import sweep
from fedbench.jobs import job, launch
from fedbench.plan import planning
from fedbench.run import simulation


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


# -- inline ----------------------------------------------------------------------------------------------------
def test_runs_that_a_person_stops_are_missing_and_not_lost(
    place: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run stops after its first round, and the other never starts."""

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulation.RunState, "close", stopped)
        assert place.run("--cluster", "inline") == 130
    assert "resume" in capsys.readouterr().out
    assert place.run("--status") == 0
    said = capsys.readouterr().out
    assert "2 missing" in said
    assert "lost" not in said
    assert place.run("--cluster", "inline") == 0
    assert [folder.status for folder in place.folders] == ["done", "done"]


def test_a_process_forgets_its_own_runs_alone(place: Workplace) -> None:
    mine, theirs = place.plan()
    made = planning.read_sweep(place.file, [place.path / "mine"])
    launch.note_inline(made, place.results, [mine.path.name, theirs.path.name])
    other = theirs.job() | {"owners": [theirs.job()["owners"][0] | {"pid": 1}]}
    launch.remember(place.results, [theirs.path.name], other)
    launch.forget_inline(place.results, [mine.path.name, theirs.path.name])
    assert (mine.job(), theirs.job()) == ({}, other)


def test_a_sweep_ends_and_the_second_time_does_nothing(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("--cluster", "inline") == 0
    assert [folder.status for folder in place.folders] == ["done", "done"]
    said = capsys.readouterr().out
    assert "2 started" in said
    assert f"done    {place.folders[0].path.name}" in said
    for folder in place.folders:
        assert [record["round"] for record in folder.records()] == [1, 2]
        assert "done" in folder.log.read_text()
        assert {"python", "torch", "timm", "numpy", "hostname", "commit", "dirty"} <= json.loads(
            (folder.path / "env.json").read_text()
        ).keys()
        assert not list(folder.path.glob("claim.*"))

    before = files(place.path)
    assert place.run("--cluster", "inline") == 0
    assert "0 started" in capsys.readouterr().out
    assert files(place.path) == before

    place.write(seeds=(0, 1, 2))
    assert place.run("--cluster", "inline") == 0
    assert "1 started" in capsys.readouterr().out
    assert {path: when for path, when in files(place.results).items() if path in before} == {
        path: when for path, when in before.items() if path.startswith(str(place.results))
    }


@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_is_listed_with_its_log(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(methods=("breaks", "head_only"), seeds=(0,))
    assert place.run("--cluster", "inline") == 1
    broken, fine = place.folders
    assert (broken.status, fine.status) == ("failed", "done")
    plugin = place.path / "mine" / "methods" / "breaks.py"
    reason = broken.failure()["reason"]
    assert re.fullmatch(rf"HookError: {plugin}: merge\(\) in line \d+: RuntimeError: broken on purpose", reason)
    line = f"failed {broken.path.name} (error): {reason} [log: {broken.log}]"
    assert line in capsys.readouterr().out
    log = broken.log.read_text()
    assert "Traceback" in log
    assert "broken\non purpose" in log

    assert place.run("--status") == 1
    assert line in capsys.readouterr().out

    assert place.run("--cluster", "inline") == 1  # not tried again
    assert "0 started" in capsys.readouterr().out
    assert broken.log.read_text() == log

    assert place.run("--cluster", "inline", "--retry-failed") == 1
    assert "1 started" in capsys.readouterr().out
    assert broken.log.read_text().count("ERROR fedbench: failed (error)") == 2
    plugin.write_text(plugin.read_text().replace(MERGE["breaks"], "pass"))
    done = place.start("--cluster", "inline", "--retry-failed")  # another process, which reads the repaired file
    assert done.communicate()[0].endswith("2 runs: 2 done\n")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"local": {"lr": 1e30}}, "diverged"),
        ({"partition": {"name": "iid", "min_train": 1000}}, "data"),
        ({"backbone": {"name": "resnet18"}}, "config"),
    ],
    ids=lambda value: str(value),
)
def test_a_failure_has_a_kind(
    place: Workplace, change: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "check_tasks", lambda *_: None)  # which would refuse two of them before they start
    place.write(methods=["fedvpt"], seeds=[0])
    content = yaml.safe_load(place.file.read_text())
    content["base"].update(change)
    place.file.write_text(yaml.safe_dump(content))
    assert place.run("--cluster", "inline", "--no-watch") == 0 + 1
    (folder,) = place.folders
    assert folder.failure()["kind"] == kind
    assert "\n" not in folder.failure()["reason"]


# -- words and mistakes ----------------------------------------------------------------------------------------
def test_a_dry_run_lists_counts_and_writes_nothing(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(methods=("fedvpt", "head_only"), seeds=(0, 1, 2))
    before = files(place.path)
    assert place.run("--dry-run") == 0
    said = capsys.readouterr().out
    assert said.count("missing") == 6 + 1
    assert "6 runs: 6 missing" in said
    assert "multiply-adds" in said
    assert place.run("--dry-run", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in report["runs"]] == [0, 1, 2, 0, 1, 2]
    assert report["multiply_adds"] == sum(run["multiply_adds"] for run in report["runs"]) > 0
    assert all(run["memory_bytes"] > 0 for run in report["runs"])
    assert files(place.path) == before
    assert not place.results.exists()


def test_a_dry_run_estimates_hours_from_the_rate_of_finished_runs(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.run("--dry-run") == 0
    assert "hours: not known until a run with each backbone has finished" in capsys.readouterr().out
    place.write(seeds=[0])
    assert place.run("--cluster", "inline", "--no-watch") == 0
    (folder,) = place.folders
    record = folder.records()[-1]
    place.write(seeds=[0, 1, 2])
    capsys.readouterr()
    assert place.run("--dry-run", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    rate = record["total_multiply_adds"] / record["seconds"]
    assert report["hours"] == pytest.approx(report["multiply_adds"] / rate / 3600)
    assert place.run("--dry-run") == 0
    assert f"hours of one run after another: {rate:.2g} multiply-adds per second, median of 1 finished run on" in (
        capsys.readouterr().out
    )
    folder.report_progress(**(folder.progress() | {"device": "cuda"}))
    assert place.run("--dry-run", "--set", "cluster.runs_per_gpu=2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["hours"] == pytest.approx(report["hours"] / 2)
    assert place.run("--dry-run") == 0
    assert "GPU-hours: " in capsys.readouterr().out


def test_status_for_scripts(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("--status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["missing"] == 2
    assert not place.results.exists()
    place.write(seeds=[0])
    assert place.run("--cluster", "inline") == 0
    place.write(seeds=[0, 1])
    capsys.readouterr()
    assert place.run("--status", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"missing": 1, "pending": 0, "running": 0, "failed": 0, "done": 1}
    assert [(run["state"], run["round"], run["rounds"]) for run in report["runs"]] == [
        ("done", 2, 2),
        ("missing", 0, 2),
    ]


def test_all_mistakes_of_a_file_are_reported_and_nothing_is_started(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(methods=["fedvtp", "head_onli"], cluster={"gpu": 1})
    assert place.run("--cluster", "inline", "--set", "round=3") == 2
    said = capsys.readouterr().err
    assert "did you mean 'gpus'?" in said
    assert "did you mean 'rounds'?" in said
    assert not place.results.exists()
    assert place.run("--cluster", "inline", "--set", "cluster={}") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--clusters", "local"],
        ["--cluster", "lsf"],
        ["--json"],
        ["--status", "--dry-run"],
        ["--status", "--cancel"],
        ["--clients", "three"],
    ],
)
def test_mistakes_on_the_command_line_are_2(place: Workplace, more: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        place.run(*more)
    assert error.value.code == 2


def test_results_on_a_disk_that_is_away_are_not_started_again(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.results = place.path / "away" / "results"
    assert place.run("--cluster", "inline") == 2
    assert "is its disk away?" in capsys.readouterr().err
    assert not place.results.parent.exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweep.main(["--help"])
    said = capsys.readouterr().out
    for option in ("--cluster", "--results", "--plugins", "--set", "--clients", "--status", "--no-watch"):
        assert said.count(option) >= 2


def test_clients_loop_is_how_not_what(place: Workplace) -> None:
    place.write(seeds=[0])
    assert place.run("--cluster", "inline", "--clients", "loop") == 0
    (folder,) = place.folders
    assert folder.config()["machine"]["clients"] == "loop"
    assert place.run("--cluster", "inline") == 0  # the same run


def test_results_of_another_config_are_not_touched(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(seeds=[0])
    assert place.run("--cluster", "inline") == 0
    (folder,) = place.folders
    config = folder.config()
    config["identity"]["rounds"] = 99
    (folder.path / "run.yaml").write_text(yaml.safe_dump(config))
    records = [record | {"config_hash": config_hash(config["identity"])} for record in folder.records()]
    (folder.path / "records.jsonl").write_bytes(b"".join(map(record_line, records)))
    place.write(seeds=[0, 1])
    before = files(place.results)
    assert place.run("--cluster", "inline") == 2
    assert "rounds is 99 there and 2 here" in capsys.readouterr().err
    assert {k: v for k, v in files(place.results).items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }


# -- leases ----------------------------------------------------------------------------------------------------
def test_a_held_run_is_passed_over_and_an_abandoned_one_taken_over(place: Workplace) -> None:
    place.write(seeds=[0])
    made = sweep.read_sweep(place.file)
    (planned,) = made.runs
    folder = RunFolder(place.results / planned.name)
    folder.plan(made.on_disk(planned))
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert lease._link(folder.path / "claim.1", processes.process(other.pid))
        job.run_job(place.results, [planned.name])
        assert folder.status == "pending"
        other.kill()  # not waited for: what is left of it in the process table is not alive
        until(lambda: lease.holder(folder.path) is None)
        job.run_job(place.results, [planned.name], spare=[planned.name])
        assert folder.status == "done"
        assert not lease.claim_files(folder.path)
    finally:
        other.kill()
        other.communicate()


def test_spare_runs_that_were_ever_begun_are_left_to_their_worker(place: Workplace) -> None:
    place.write(seeds=[0, 1])
    made = sweep.read_sweep(place.file)
    begun, fresh = (RunFolder(place.results / planned.name) for planned in made.runs)
    for planned in made.runs:
        RunFolder(place.results / planned.name).plan(made.on_disk(planned))
    gone = processes.Owner(processes.process().host, 2**22 + 1, "1")
    assert lease._link(begun.path / "claim.1", gone)
    job.run_job(place.results, [], spare=[begun.path.name, fresh.path.name])
    assert (begun.status, fresh.status) == ("pending", "done")


def test_a_job_by_hand(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(methods=["head_only", "breaks"], seeds=[0])
    made = sweep.read_sweep(place.file, [place.path / "mine"])
    names = [planned.name for planned in made.runs]
    for planned in made.runs:
        RunFolder(place.results / planned.name).plan(made.on_disk(planned))
    assert job.main([str(place.results), names[0]]) == 0
    assert job.main([str(place.results), *names]) == 1
    with pytest.raises(SystemExit) as error:
        job.main([str(place.results), "nobody"])
    assert error.value.code == 2
    assert "no such run" in capsys.readouterr().err


# -- local processes -------------------------------------------------------------------------------------------
def under_way(place: Workplace, count: int) -> list[RunFolder]:
    def running() -> list[RunFolder]:
        busy = [folder for folder in place.folders if folder.progress().get("round", 0) >= 2]
        return busy if len(busy) == count else []

    return until(running)


def worker_of(folder: RunFolder) -> int:
    return int(json.loads(lease.claim_files(folder.path)[-1].read_text())["pid"])


@pytest.mark.slow  # starts several processes
def test_a_killed_worker_begins_again_and_the_numbers_are_the_same(place: Workplace) -> None:
    place.write(methods=["slow"], seeds=[0, 1], rounds=40, cluster={"workers": 2})
    watcher = place.start("--cluster", "local", TEST_PAUSE="0.2")
    try:
        first, second = under_way(place, 2)
        assert worker_of(first) != worker_of(second)
        os.kill(worker_of(first), signal.SIGKILL)
        said, _ = watcher.communicate(timeout=240)
    finally:
        watcher.kill()
        watcher.communicate()
    assert watcher.returncode == 0, said
    assert [note["kind"] for note in first.notes()] == ["killed"]
    assert first.log.read_text().count("start of") == 2
    assert second.log.read_text().count("start of") == 1
    assert "supervisor: a worker ended (its process was killed by SIGKILL)" in Path(first.job()["log"]).read_text()
    inline = RunFolder(place.path / "inline" / first.path.name)
    assert place.run("--cluster", "inline", "--results", str(place.path / "inline")) == 0
    assert numbers(first) == numbers(inline)
    assert len(numbers(first)) == 40


@pytest.mark.slow  # starts several processes
def test_a_killed_supervisor_and_its_worker_show_as_lost_and_the_same_command_resumes_the_run(place: Workplace) -> None:
    place.write(methods=["slow"], seeds=[0], rounds=40, cluster={"workers": 1})
    watcher = place.start("--cluster", "local", TEST_PAUSE="0.2")
    try:
        (only,) = under_way(place, 1)
        os.kill(only.job()["owners"][0]["pid"], signal.SIGKILL)
        os.kill(worker_of(only), signal.SIGKILL)
        said, _ = watcher.communicate(timeout=240)
    finally:
        watcher.kill()
        watcher.communicate()
    assert watcher.returncode == 1
    log = only.job()["log"]
    assert f"failed {only.path.name} (lost): " in said
    assert f"[log: {log}]" in said
    assert Path(log).exists()
    assert 2 <= only.progress()["round"] < 40
    assert place.run("--cluster", "local") == 0
    assert [note["kind"] for note in only.notes()] == ["lost"]
    assert [record["round"] for record in only.records()] == list(range(1, 41))


@pytest.mark.slow  # starts several processes
def test_ctrl_c_only_stops_watching(place: Workplace) -> None:
    place.write(methods=["slow"], seeds=[0, 1, 2], rounds=120, cluster={"workers": 2})
    watcher = place.start("--cluster", "local", TEST_PAUSE="0.1")
    try:
        busy = under_way(place, 2)
        workers = [worker_of(folder) for folder in busy]
        watcher.send_signal(signal.SIGINT)
        said, _ = watcher.communicate(timeout=240)
    finally:
        watcher.kill()
        watcher.communicate()
    assert watcher.returncode == 130
    assert "Traceback" not in said
    assert "nothing was cancelled and the local workers continue. Watch them again with: fedbench sweep" in said
    assert [worker_of(folder) for folder in busy] == workers
    assert place.run("--cluster", "local") == 0  # watches those that go on
    assert [folder.status for folder in place.folders] == ["done"] * 3
    assert [folder.log.read_text().count("start of") for folder in place.folders] == [1] * 3


def test_the_slots_are_the_cores_or_what_the_file_says(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for cluster, expected in (
        ({}, (8, 1)),
        ({"cpus": 3}, (2, 4)),
        ({"workers": 4}, (4, 2)),
        ({"workers": 20}, (20, 1)),
    ):
        place.write(cluster=cluster)
        count, gpus, threads = launch.slots(sweep.read_sweep(place.file))
        assert ((count, threads), gpus) == (expected, None)
