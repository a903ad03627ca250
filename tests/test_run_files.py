"""Damaged and odd files of runs: each is named, the other runs continue, and no number is lost silently."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from workplace import HOME, Workplace, numbers, until
from written import write_run

from fedbench.base import lease, record_schema, run_files
from fedbench.base.record_schema import TotalCosts
from fedbench.base.records import MEASURED, RecordsError, RunFolder, due_rounds
from fedbench.jobs import job
from fedbench.report.evidence import gather
from fedbench.report.tables.notes import alarms
from fedbench.run import checkpoint

Change = Callable[[Path], object]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], bytes]:
    """A run of 10 rounds that nothing disturbs: its workplace, its numbers by round, and its clients.parquet."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    place.write(methods=["slow"], seeds=[0], rounds=10)
    assert place.run("--cluster", "inline", "--no-watch") == 0
    (folder,) = place.folders
    assert [record["round"] for record in folder.records()] == list(range(1, 11))
    return place.path, {"numbers": numbers(folder)}, (folder.path / "clients.parquet").read_bytes()


def same_run_elsewhere(place: Workplace, undisturbed: tuple[Path, dict[str, Any], bytes]) -> None:
    """Make `place` ask for the very run of `undisturbed`: the same data, method and config."""
    place.file.write_text((undisturbed[0] / "sweep.yaml").read_text())
    place.path.joinpath("mine/methods/slow.py").write_bytes((undisturbed[0] / "mine/methods/slow.py").read_bytes())


def assert_undisturbed(folder: RunFolder, undisturbed: tuple[Path, dict[str, Any], bytes]) -> None:
    assert folder.status == "done"
    assert not folder.damage()
    assert numbers(folder) == undisturbed[1]["numbers"]
    assert (folder.path / "clients.parquet").read_bytes() == undisturbed[2]


@pytest.fixture(scope="module")
def killed_results(undisturbed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of that run, killed by SIGKILL once it had done 5 rounds."""
    place = Workplace(tmp_path_factory.mktemp("killed"))
    same_run_elsewhere(place, undisturbed)
    (folder,) = place.plan()
    command = [sys.executable, "-m", "fedbench.jobs.job", str(place.results), folder.path.name]
    process = subprocess.Popen(command, cwd=HOME, env={**os.environ, "TEST_PAUSE": "0.3"}, stderr=subprocess.DEVNULL)
    until(lambda: folder.progress().get("round", 0) >= 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.status == "running"
    return place.results


@pytest.fixture
def killed(place: Workplace, undisturbed: Any, killed_results: Path) -> RunFolder:
    """A copy of that run in `place`."""
    same_run_elsewhere(place, undisturbed)
    shutil.copytree(killed_results, place.results)
    (folder,) = place.folders
    return folder


def flip(path: Path, *positions: int) -> None:
    """Flip one bit of each of these bytes (from the end if negative)."""
    content = bytearray(path.read_bytes())
    for position in positions:
        content[position] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def break_line_2(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "oops" + lines[1], *lines[2:]]))


# -- records and checkpoints -------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, empty, break_line_2, cut], ids=["deleted", "emptied", "line 2", "cut"])
def test_a_run_killed_at_round_5_whose_records_are_then_damaged_makes_all_ten_rounds(
    place: Workplace, killed: RunFolder, undisturbed: Any, damage: Change
) -> None:
    damage(killed.path / "records.jsonl")
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert_undisturbed(killed, undisturbed)
    assert "records.jsonl lacks round" in killed.log.read_text()


@pytest.mark.slow
def test_a_flipped_digit_of_a_record_is_detected_when_the_run_resumes(
    place: Workplace, killed: RunFolder, undisturbed: Any
) -> None:
    path = killed.path / "records.jsonl"
    path.write_text(path.read_text().replace('"train_loss": ', '"train_loss": 1', 1))
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert_undisturbed(killed, undisturbed)
    assert "records.jsonl does not hold what the run wrote" in killed.log.read_text()


@pytest.mark.parametrize("name", ["records.jsonl", "clients.parquet", "run.yaml", "done"])
@pytest.mark.parametrize("damage", [Path.unlink, empty, cut, lambda path: flip(path, 40, 41, 42, -30)])
def test_a_finished_run_with_a_damaged_file_is_named_and_mended(
    place: Workplace, undisturbed: Any, capsys: pytest.CaptureFixture[str], name: str, damage: Change
) -> None:
    same_run_elsewhere(place, undisturbed)
    assert place.run("--cluster", "inline", "--no-watch") == 0
    (folder,) = place.folders
    (folder.path / "job.json").unlink()  # names this process, which lives on
    damage(folder.path / name)
    capsys.readouterr()
    code, said = place.run("--status"), capsys.readouterr().out
    named = f"{folder.path / name} is missing" in said or f"{folder.path / name} does not hold" in said
    named = named or f"{folder.path / name}: " in said
    # Without `done` the run is merely not done, and an empty one is that of an older version.
    assert (code, named) == ((0, False) if name == "done" and "damaged" not in said else (1, True))
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert_undisturbed(folder, undisturbed)


def test_a_finished_run_of_an_older_version_is_checked_by_its_rounds_and_its_clients(
    place: Workplace, undisturbed: Any
) -> None:
    same_run_elsewhere(place, undisturbed)
    assert place.run("--cluster", "inline", "--no-watch") == 0
    (folder,) = place.folders
    empty(folder.path / "done")  # as versions up to 0.1 wrote it
    assert not folder.damage()
    whole = (folder.path / "records.jsonl").read_bytes()
    break_line_2(folder.path / "records.jsonl")
    assert folder.damage() == [f"{folder.path / 'records.jsonl'} lacks round 2"]
    (folder.path / "records.jsonl").write_bytes(whole)
    cut(folder.path / "clients.parquet")
    (problem,) = folder.damage()
    assert problem.startswith(f"{folder.path / 'clients.parquet'} cannot be read")


def test_every_flipped_bit_of_a_checkpoint_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each byte of a small file in turn: a flip is refused, or it changes nothing that is read."""
    state = {"w": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 3), "flag": torch.tensor(True)}
    costs = TotalCosts(1, 2, 3)
    checkpoint.save(tmp_path, state, 7, costs, 1.5, {"records.jsonl": "0" * 64})
    path = tmp_path / checkpoint.CURRENT
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole)
        flip(path, position)
        saved = checkpoint.load(tmp_path)
        if saved is None:
            refused += 1
            continue
        assert (saved.round, saved.totals, saved.seconds) == (7, costs, 1.5)
        assert saved.files == {"records.jsonl": "0" * 64}
        assert all(torch.equal(saved.state[name], value) for name, value in state.items())
    assert refused > 0.8 * len(whole)
    assert f"{path} is damaged" in caplog.text


def test_four_flipped_bytes_in_a_checkpoint_lead_to_the_one_before(
    place: Workplace, killed: RunFolder, undisturbed: Any
) -> None:
    reached = checkpoint.load(killed.path)
    assert reached is not None
    flip(killed.path / checkpoint.CURRENT, -9, -10, -11, -12)
    before = checkpoint.load(killed.path)
    assert before is not None
    assert before.round == reached.round - 1
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert_undisturbed(killed, undisturbed)
    assert "is damaged (its checksum does not match its content)" in killed.log.read_text()


def test_without_any_usable_checkpoint_a_run_starts_from_the_beginning(
    place: Workplace, killed: RunFolder, undisturbed: Any
) -> None:
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        cut(killed.path / name)
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert_undisturbed(killed, undisturbed)
    assert "the run starts from the beginning" in killed.log.read_text()


def test_a_checkpoint_of_an_older_version_without_checksums_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    scalars = {f"total.{name}": torch.tensor(2.0, dtype=torch.float64) for name in ("bytes_up", "bytes_down")}
    scalars |= {f"total.{name}": torch.tensor(3.0, dtype=torch.float64) for name in ("multiply_adds", "seconds")}
    save_file({"w": torch.ones(2), **scalars}, tmp_path / checkpoint.CURRENT, metadata={"round": "4"})
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert (saved.round, saved.totals, saved.seconds, saved.files) == (4, TotalCosts(2, 2, 3), 3.0, {})


def test_what_a_kill_left_of_a_checkpoint_is_removed(place: Workplace) -> None:
    place.write(seeds=[0])
    (folder,) = place.plan()
    left = [f".{checkpoint.CURRENT}.123.tmp", ".tmpaB3xY9", ".clients.parquet.9.tmp"]
    for name in [*left, ".job.json.77.tmp"]:
        (folder.path / name).write_bytes(b"half")
    job.run_job(place.results, [folder.path.name])
    assert folder.status == "done"
    assert [path.name for path in folder.path.glob(".*")] == [".job.json.77.tmp"]  # may be a living sweep's


def test_checkpoints_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        checkpoint.save(tmp_path, {"w": torch.ones(2)}, 1, TotalCosts(0, 0, 0), 0.0)
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {checkpoint.CURRENT: 0o664, "plain": 0o664}


# -- run.yaml ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"\xaf\x00\xff", b"", b"identity:\n  back", b"- 1\n", b"[" * 5000])
@pytest.mark.parametrize("state", ["done", "planned"])
def test_one_unreadable_run_yaml_is_named_and_written_again_and_the_others_continue(
    place: Workplace, capsys: pytest.CaptureFixture[str], content: bytes, state: str
) -> None:
    place.write(seeds=[0, 1])
    first, second = place.plan()
    if state == "done":
        job.run_job(place.results, [first.path.name])
    (first.path / "run.yaml").write_bytes(content)
    with pytest.raises(RecordsError, match=str(first.path / "run.yaml")):
        first.config()
    place.run("--status")
    assert str(first.path / "run.yaml") in capsys.readouterr().out
    assert place.run("--cluster", "inline", "--no-watch") == 0
    said = capsys.readouterr().err
    assert said.startswith(f"{first.path / 'run.yaml'}: ")
    assert "it is written again" in said
    assert [folder.status for folder in (first, second)] == ["done", "done"]
    assert first.config()["identity"]["seed"] == 0
    assert not first.damage()


def test_a_job_whose_run_yaml_is_gone_fails_at_once_with_the_file_and_does_no_other_harm(place: Workplace) -> None:
    place.write(seeds=[0, 1])
    first, second = place.plan()
    (first.path / "run.yaml").unlink()
    job.run_job(place.results, [first.path.name, second.path.name])
    assert first.failure()["kind"] == "config"
    assert f"{first.path / 'run.yaml'}: is missing" in first.failure()["reason"]
    assert second.status == "done"


# -- small files -------------------------------------------------------------------------------------------------
ODD: list[tuple[str, bytes]] = [
    ("claim.1~", b"x"),
    ("claim.bak", b"x"),
    ("claim.1", b'{"host": 3}'),
    ("notes.jsonl", b"3\n"),
    ("notes.jsonl", b'{"kind": null}\n'),
    ("progress.json", b'"a text"'),
    ("progress.json", b"null"),
    ("progress.json", b'{"round": "five"}'),
    ("progress.json", b'{"round": 1, "seconds": Infinity}'),
    ("job.json", b'{"scheduler": "slurm", "log": "x", "sweep": "sweep"}'),
    ("job.json", b'{"scheduler": "slurm", "log": "x", "sweep": "sweep", "id": "--user=root"}'),
    ("job.json", b'{"scheduler": "local", "log": "x", "sweep": "sweep", "owners": [1]}'),
    ("job.json", b"[" * 100_000),
    ("failed.json", b'{"kind": 7}'),
    ("env.json", b'{"packages": {"torch"'),
    ("env.json", b"\xaf\x00\xff"),
    ("records.jsonl", b'{"round": 1, "mean_accuracy": "high"}\n'),
    ("records.jsonl", b'{"round": 1, "mean_accuracy": 1' + b"0" * 400 + b"}\n"),
    ("records.jsonl", b'{"round": 1, "mean_accuracy": 7.5}\n'),
    ("records.jsonl", b'{"round": 1, "train_loss": NaN}\n'),
]


@pytest.mark.parametrize(("name", "content"), ODD, ids=lambda value: str(value)[:40])
def test_one_odd_file_is_named_and_stops_nothing(
    place: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    first, second = place.plan()
    (first.path / name).write_bytes(content)
    assert place.run("--status") == (1 if name == "failed.json" else 0)
    said = capsys.readouterr().out
    assert f"odd file: {first.path / name}" in said
    assert "2 runs: " in said
    assert place.run("--status", "--json") == (1 if name == "failed.json" else 0)
    (line,) = json.loads(capsys.readouterr().out)["odd_files"]
    assert str(first.path / name) in line
    code = place.run("--cluster", "inline", *(["--retry-failed"] if name == "failed.json" else []))
    assert code == 0
    assert [folder.status for folder in (first, second)] == ["done", "done"]
    assert [record["round"] for record in first.records()] == [1, 2]


def test_status_names_the_gaps_of_a_run_that_is_not_done(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(seeds=[0], rounds=3)
    (folder,) = place.plan()
    job.run_job(place.results, [folder.path.name])
    for name in ("done", "records.jsonl"):
        (folder.path / name).unlink()
    assert place.run("--status") == 0
    assert (
        f"odd file: {folder.path / 'records.jsonl'} lacks rounds 1, 2, 3 of 3 that were done" in capsys.readouterr().out
    )


def test_the_shape_of_a_record_follows_its_schema(place: Workplace) -> None:
    place.write(seeds=[0], rounds=1)
    (folder,) = place.plan()
    job.run_job(place.results, [folder.path.name])
    (record,) = folder.records()
    shape = run_files.record_shape()
    assert set(shape) == set(record_schema.columns())
    assert run_files.misfit(record, shape) == ""
    for name in shape:
        assert run_files.misfit(record | {name: [1]}, shape).startswith(f"{name}: expected")
        column = record_schema.columns()[name]
        nullable = type(None) in get_args(column.type) or column.part is record_schema.TestMetrics
        assert (run_files.misfit(record | {name: None}, shape) == "") == nullable


def test_what_may_differ_between_executions_is_what_the_schema_says() -> None:
    assert set(MEASURED) == {"seconds", "samples_per_second", "peak_memory_bytes", "commit", "code", "chunk_images"}


def test_rounds_are_due_at_every_evaluation_and_at_the_end() -> None:
    assert due_rounds(10, 4) == [4, 8, 10]
    assert due_rounds(10, 4, up_to=9) == [4, 8]
    assert due_rounds(3, 10) == [3]


def test_code_that_changed_during_a_run_is_seen_in_its_records(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for round_, code in ((1, "aaaaaaaa-11111111"), (2, "aaaaaaaa-11111111"), (3, "bbbbbbbb-11111111")):
        folder.append({"round": round_, "code": code})
    assert folder.code_versions() == ["aaaaaaaa-11111111", "bbbbbbbb-11111111"]


def test_a_run_yaml_with_the_old_key_halvings_loads(place: Workplace) -> None:
    place.write(seeds=[0], rounds=1)
    (folder,) = place.plan()
    config = folder.config()
    config["machine"]["halvings"] = 2
    (folder.path / "run.yaml").write_text(yaml.safe_dump(config))
    job.run_job(place.results, [folder.path.name])
    assert folder.status == "done"


def test_a_report_warns_of_code_that_changed_during_a_run(tmp_path: Path) -> None:
    for label, codes in (("A", ("aaaaaaaa-11111111", "bbbbbbbb-11111111")), ("B", ("bbbbbbbb-11111111",) * 2)):
        folder = write_run(tmp_path, label, accuracies={10: 0.5}, state="running", code=codes[0])
        folder.append(folder.records()[0] | {"round": 20, "code": codes[1]})
        folder.finish()
    runs = gather([], tmp_path).runs
    changed = [run for run in runs["run"] if run.startswith("ma-")]
    assert [text for text in alarms(runs) if "while it ran" in text] == [
        f"{changed[0]}: the code changed while it ran, so its records mix versions."
    ]
