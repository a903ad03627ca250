"""Each bit of each small JSON file of a run flipped in turn: the file is named as odd, or it says the very same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedbench.base import lease, processes, run_files
from fedbench.base.processes import Owner
from fedbench.base.records import RunFolder
from fedbench.jobs import environment, launch

Read = Callable[[list[str]], Any]


def written_by_a_run(name: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Read]:
    """A file of a run as fedbench writes it, and its reader."""
    owner = Owner("node7/4026531836", 4711, "123456", "12_3")
    if name == "failed.json":
        folder.fail("error", "ValueError: a reason", round=3)
    elif name == "progress.json":
        folder.report_progress(round=3, rounds=10, time=1764.25, images_per_second=None, seconds=12.5, device="cpu")
    elif name == "notes.jsonl":
        folder.note(kind="lost", reason="its process ended", round=3, pid=4711, started="123456")
        folder.note(kind="retry", reason="asked for")
    elif name == "job.json":
        job = {"scheduler": "local", "owners": [vars(owner)], "log": "log", "sweep": "mine"}
        launch.remember(folder.path.parent, [folder.path.name], job)
    elif name == "env.json":
        monkeypatch.setattr(environment, "_packages", lambda: {"torch": "2.9.1", "numpy": "2.3.5"})
        environment.write(folder, {"code": "a-b", "sweep_command": None, "pack": 1, "compile": False})
    else:
        assert lease._link(folder.path / name, owner)
    path = folder.path / name
    readers: dict[str, Read] = {
        "failed.json": folder.failure,
        "progress.json": folder.progress,
        "notes.jsonl": folder.notes,
        "job.json": folder.job,
        "env.json": folder.environment,
    }
    return path, readers.get(name, lambda problems: lease.owner_of(path, problems))


def flips(whole: bytes) -> Iterator[bytes]:
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            yield bytes(flipped)


def holding(content: bytes) -> Callable[..., bytes]:
    """A stand-in for `run_files.content`: writing and reading each of 40,000 damaged files takes minutes."""
    return lambda *_: content


SMALL = ("failed.json", "progress.json", "notes.jsonl", "job.json", "env.json", "claim.1")


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_with_one_flipped_bit_is_named_or_says_the_very_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, read = written_by_a_run(name, RunFolder(tmp_path), monkeypatch)
    whole, problems = path.read_bytes(), list[str]()
    content = read(problems)
    assert content
    assert not problems
    named = 0
    for flipped in flips(whole):
        monkeypatch.setattr(run_files, "content", holding(flipped))
        problems = []
        value = read(problems)
        assert all(str(path) in problem for problem in problems)
        assert problems or value == content, flipped
        named += bool(problems)
    assert named > 0.99 * 8 * len(whole)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_of_an_older_version_is_read_and_never_loses_a_required_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without a checksum a flipped bit of a value may pass, but every key stays, and no text becomes empty."""
    path, read = written_by_a_run(name, RunFolder(tmp_path), monkeypatch)
    content = read([])
    lines = path.read_text().splitlines() if name == "notes.jsonl" else [path.read_text()]
    values = [json.loads(line) for line in lines]
    for value in values:
        del value[run_files.CHECKSUM]
    whole = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    monkeypatch.setattr(run_files, "content", holding(whole))
    problems: list[str] = []
    assert read(problems) == content
    assert not problems
    for flipped in flips(whole):
        monkeypatch.setattr(run_files, "content", holding(flipped))
        problems = []
        value = read(problems)
        if not problems:
            assert empty_texts(value) == empty_texts(content), flipped


def empty_texts(content: Any) -> list[tuple[str, bool]]:
    """Each key of a file's content, and whether its text is empty."""
    mappings = content if isinstance(content, list) else [vars(content) if isinstance(content, Owner) else content]
    items = [item for mapping in mappings for item in mapping.items()]
    return [(key, isinstance(value, str) and not value.strip()) for key, value in items]


def test_done_with_one_flipped_bit_is_damage_and_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    for name in run_files.SEAL:
        (tmp_path / name).write_text(name)
    folder.finish()
    assert not folder.damage()
    monkeypatch.setattr(run_files, "checksum", cache(run_files.checksum))
    for flipped in flips((tmp_path / "done").read_bytes()):
        monkeypatch.setattr(run_files, "content", holding(flipped))
        damage = folder.damage()
        assert damage, flipped
        assert all(str(tmp_path) in problem for problem in damage)


def test_a_failed_json_whose_key_has_a_flipped_bit_is_named_with_its_reason(tmp_path: Path) -> None:
    """The very file that a gate met: valid JSON with a key `rdason`."""
    folder = RunFolder(tmp_path)
    (tmp_path / "failed.json").write_text('{"kind": "error", "rdason": "ValueError: x", "log": "log.txt"}')
    problems: list[str] = []
    assert folder.failure(problems) == {}
    assert problems == [
        f"{tmp_path / 'failed.json'}: unknown key 'rdason'; known are kind, reason, log, round; it is ignored"
    ]


def test_the_owner_of_a_claim_with_a_flipped_digit_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process number would look like a process that ended, and its folder would be taken at once."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    me = processes.process()
    assert lease._link(tmp_path / "claim.1", me)
    path = tmp_path / "claim.1"
    path.write_bytes(path.read_bytes().replace(f'"pid": {me.pid}'.encode(), f'"pid": {me.pid ^ 1}'.encode()))
    waited: list[float] = []
    monkeypatch.setattr(lease.time, "sleep", waited.append)
    assert lease._is_abandoned(path, Owner(me.host, me.pid + 1, "1"))
    assert len(waited) == lease.SILENT_BEATS  # only after all its heartbeats were missed
