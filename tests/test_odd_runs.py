"""Folders without a run.yaml, and damaged env.json and notes.jsonl: each is named, and the next attempt mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workplace import Workplace
from written import write_run

from fedbench.base.records import RunFolder
from fedbench.cli import figures
from fedbench.jobs import failures, job
from fedbench.report.figures import report_figures
from fedbench.report.figures.catalogue import FigureCatalogue


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.write(seeds=[0], rounds=1)
    return place


def finished(place: Workplace) -> RunFolder:
    (folder,) = place.plan()
    job.run_job(place.results, [folder.path.name])
    return folder


@pytest.mark.parametrize("state", ["done", "running"])
def test_a_run_whose_run_yaml_is_gone_is_named_by_status_and_written_again_by_its_sweep(
    place: Workplace, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    folder = finished(place)
    if state == "running":
        (folder.path / "done").unlink()
    (folder.path / "run.yaml").unlink()
    place.run("--status")
    want = f"odd file: {folder.path} holds a run, but its run.yaml is gone; start its sweep again, which writes it"
    assert want in capsys.readouterr().out
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert "it is written again" in capsys.readouterr().err
    assert folder.config()["identity"]["seed"] == 0
    assert not folder.damage()
    place.run("--status")
    assert "odd file" not in capsys.readouterr().out


def test_a_run_of_another_sweep_whose_run_yaml_is_gone_is_named_by_status(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(place)
    (folder.path / "run.yaml").unlink()
    (place.results / "plots").mkdir()  # a folder of the user's own
    place.write(seeds=[1], rounds=1)
    assert place.run("--status") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("odd file")]
    assert line.startswith(f"odd file: {folder.path} holds a run, but its run.yaml is gone")


def test_a_report_names_the_folder_whose_run_yaml_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    write_run(tmp_path / "r", "whole", 0, {20: 0.75})
    hurt = write_run(tmp_path / "r", "hurt", 0, {20: 0.5})
    (hurt.path / "run.yaml").unlink()
    assert figures.main(["--results", str(tmp_path / "r"), "--out", str(tmp_path / "out")]) == 0
    want = f"{hurt.path.name} holds a run, but its run.yaml is gone"
    printed = capsys.readouterr()
    assert want in "".join((printed.out + printed.err).split("\n"))
    assert want in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("content", [b"", b"\xaf\x00", b'{"packages": {"torch"', b'{"python": "3.11"}'])
def test_a_damaged_env_json_is_named_moved_aside_once_and_written_whole_by_the_next_attempt(
    place: Workplace, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = finished(place)
    for name in ("done", "records.jsonl", "progress.json"):
        (folder.path / name).unlink()
    (folder.path / "env.json").write_bytes(content)
    place.run("--status")
    assert f"odd file: {folder.path / 'env.json'}: " in capsys.readouterr().out
    job.run_job(place.results, [folder.path.name])
    problems: list[str] = []
    assert folder.environment(problems)["packages"]
    assert not problems
    assert (folder.path / "env.json.damaged-1").read_bytes() == content
    assert folder.log.read_text().count("the file was moved to env.json.damaged-1") == 1
    place.run("--status")
    assert "odd file" not in capsys.readouterr().out


def test_damaged_notes_keep_their_readable_lines_and_are_named_once(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = place.plan()
    for number in range(3):
        folder.note(kind="lost", reason=f"reason {number}", round=number)
    path = folder.path / "notes.jsonl"
    damaged = path.read_bytes().replace(b"reason 1", b"reason 2")  # valid JSON that the run never wrote
    path.write_bytes(damaged)
    place.run("--status")
    assert f"odd file: {path}, line 2: its checksum does not match its content" in capsys.readouterr().out
    assert place.run("--cluster", "inline", "--no-watch") == 0
    assert "the file was moved to notes.jsonl.damaged-1" in capsys.readouterr().err
    assert (folder.path / "notes.jsonl.damaged-1").read_bytes() == damaged
    assert [note["reason"] for note in folder.notes()][:2] == ["reason 0", "reason 2"]
    place.run("--status")
    assert "odd file" not in capsys.readouterr().out


def test_a_note_added_to_damaged_notes_loses_no_readable_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped line break at the end looks like what a kill leaves, which the next note removes."""
    folder = RunFolder(tmp_path)
    folder.note(kind="lost", reason="first")
    folder.note(kind="lost", reason="second")
    path = tmp_path / "notes.jsonl"
    path.write_bytes(path.read_bytes()[:-1] + b"\x1a")
    failures.note(folder, "lost", "third")
    assert [note["reason"] for note in folder.notes()] == ["first", "third"]
    assert b"second" in (tmp_path / "notes.jsonl.damaged-1").read_bytes()
    assert "the last line ends in b'\\x1a' instead of a line break" in caplog.text


def test_a_done_run_with_a_damaged_env_json_stays_done_and_its_sweep_says_so_once(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(place)
    path = folder.path / "env.json"
    environment = json.loads(path.read_bytes()) | {"threads": 7}
    path.write_text(json.dumps(environment))
    assert place.run("--status") == 0
    assert f"odd file: {path}: its checksum does not match its content" in capsys.readouterr().out
    for said in (True, False):
        assert place.run("--cluster", "inline", "--no-watch") == 0
        assert ("env.json.damaged-1" in capsys.readouterr().err) == said
    assert folder.status == "done"
