"""Runs on disk: one folder a run, read and written here alone. The disk is the state; nothing here imports torch.

A run's folder holds run.yaml (its whole config), records.jsonl (one self-contained JSON object per evaluated round),
clients.parquet (accuracy per client at the end), env.json, checkpoint.safetensors, progress.json, log.txt, and one of
`done` or `failed.json` once it has ended; notes.jsonl says how earlier tries ended. Every other file is written aside and
moved.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import yaml

from fedbench.base.storage import write_aside

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["missing", "pending", "running", "failed", "done"]

# How a run was executed; everything else in a record is the same in every execution of it on one kind of machine.
MEASURED = ("seconds", "samples_per_second", "peak_memory_bytes", "commit", "code", "chunk_images")

# libyaml's, where there is one: a sweep of ten thousand runs reads as many files, ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class RecordsError(ValueError):
    """A results folder that cannot be used; says which file and what was expected."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    # -- config ------------------------------------------------------------------------------------------------
    def plan(self, config: dict[str, Any]) -> None:
        """Make the folder and write run.yaml, or check that the one there is of the same identity.

        `config` holds at least "identity" (what changes the run's numbers); other keys may differ and are rewritten.
        Raises RecordsError where the folder belongs to another config.
        """
        self.path.parent.mkdir(exist_ok=True)  # and none above it: its disk may be away
        self.path.mkdir(exist_ok=True)
        if (self.path / "run.yaml").exists():
            there = self.config()
            if there.get("identity") != config["identity"]:
                raise RecordsError(
                    f"{self.path} holds a run of another config under the same key: "
                    f"{_difference(there.get('identity', {}), config['identity'])}. "
                    "Choose another --results folder or move this one away; nothing was changed."
                )
            if there == config:
                return
        write_aside(self.path / "run.yaml", yaml.dump(config, Dumper=_DUMPER, sort_keys=False).encode())

    def config(self) -> dict[str, Any]:
        """What run.yaml says. Raises RecordsError where it is missing or not a mapping."""
        path = self.path / "run.yaml"
        try:
            config = yaml.load(path.read_text(), Loader=LOADER)  # noqa: S506 - a safe one
        except (OSError, yaml.YAMLError) as error:
            raise RecordsError(f"{path}: cannot be read as a run's config ({error})") from error
        if not isinstance(config, dict):
            raise RecordsError(f"{path}: expected a mapping, found {type(config).__name__}")
        return config

    # -- records -----------------------------------------------------------------------------------------------
    def append(self, record: dict[str, Any]) -> None:
        """Add one evaluated round; a whole line or nothing once read back."""
        _append(self.path / "records.jsonl", record)

    def records(self) -> list[dict[str, Any]]:
        """All whole records in order, one a round; a half-written last line is passed over.

        Raises RecordsError where a line is whole and no record.
        """
        return self._rounds(_content(self.path / "records.jsonl"))

    def _rounds(self, content: bytes) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for record in _lines(content):
            try:
                found.setdefault(record["round"], record)
            except (TypeError, KeyError) as error:
                raise RecordsError(f"{self.path / 'records.jsonl'}: no record of a round: {record!r:.80}") from error
        return list(found.values())

    def cut_records(self, last_round: int) -> None:
        """Drop records after `last_round` (they lie beyond the checkpoint and will be made again).

        Raises OSError where the folder is away, whose records must not be taken for none.
        """
        path = self.path / "records.jsonl"
        if path in self.path.iterdir():  # raises where exists() is just False
            keep = [record for record in self._rounds(path.read_bytes()) if record["round"] <= last_round]
            write_aside(path, "".join(json.dumps(record) + "\n" for record in keep).encode())

    # -- state -------------------------------------------------------------------------------------------------
    def progress(self) -> dict[str, Any]:
        """What the run last said of itself ({} before its first word): round, rounds, time, images_per_second, pid, host."""
        return self.mapping("progress.json")

    def say(self, **progress: Any) -> None:
        """Replace progress.json."""
        write_aside(self.path / "progress.json", json.dumps(progress).encode())

    def failure(self) -> dict[str, Any]:
        """{} or {"kind", "reason", "round", "log"} of a failed run; kind is one of diverged, data, error, ..."""
        return self.mapping("failed.json")

    def fail(self, kind: str, reason: str, **more: Any) -> None:
        """Mark the run as failed."""
        failure = {"kind": kind, "reason": reason, "log": str(self.log), **more}
        write_aside(self.path / "failed.json", json.dumps(failure).encode())

    def finish(self) -> None:
        """Mark the run as done; its last act."""
        (self.path / "failed.json").unlink(missing_ok=True)
        write_aside(self.path / "done", b"")

    def clear_failure(self) -> None:
        """Let a failed run be tried again."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def note(self, **words: Any) -> None:
        """Add to what is known of tries that ended before the run was done: "kind", "reason" and more."""
        _append(self.path / "notes.jsonl", {"time": time.time(), **words})

    def notes(self) -> list[dict[str, Any]]:
        """What was noted, oldest first."""
        return _lines(_content(self.path / "notes.jsonl"))

    def mapping(self, name: str) -> dict[str, Any]:
        """The mapping in a file of the folder; {} where there is none."""
        try:
            with open(f"{self.path}/{name}") as file:  # no Path: ten thousand of them take their time
                value = json.loads(file.read())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def files(self) -> frozenset[str]:
        """The names of all files, by one look; none where there is no folder."""
        try:
            return frozenset(os.listdir(self.path))  # noqa: PTH208 - a tenth of the time, ten thousand times over
        except OSError:
            return frozenset()

    @property
    def log(self) -> Path:
        """Where the run writes its log."""
        return self.path / "log.txt"

    @property
    def status(self) -> Status:
        """missing: no folder; pending: planned; running: has progress; failed; done."""
        return status_of(self.files())


def status_of(files: Collection[str]) -> Status:
    """The state of a run whose folder holds `files`."""
    if "done" in files:
        return "done"
    if "failed.json" in files:
        return "failed"
    if "progress.json" in files:
        return "running"
    return "pending" if "run.yaml" in files else "missing"


def run_folders(results: Path) -> Iterator[RunFolder]:
    """Every run below `results`, sorted by name."""
    if results.is_dir():
        for path in sorted(results.iterdir()):
            if (path / "run.yaml").is_file():
                yield RunFolder(path)


def load(folders: Iterable[RunFolder]) -> pd.DataFrame:
    """All records of `folders`, one row per evaluated round, with a "status" column of the run's state."""
    import pandas as pd  # only readers of tables need it, and it takes its time

    return pd.DataFrame([record | {"status": folder.status} for folder in folders for record in folder.records()])


def _append(path: Path, value: dict[str, Any]) -> None:
    """Add a line and have it on disk; what a full disk or a kill left of an earlier line goes first."""
    line = json.dumps(value).encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        size = file.tell()
        while size and _at(file, size - 1) != b"\n":
            size -= 1
        file.truncate(size)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def _at(file: IO[bytes], position: int) -> bytes:
    file.seek(position)
    return file.read(1)


def _content(path: Path) -> bytes:
    """What a file holds; nothing where there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _lines(content: bytes) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    found = []
    for line in content.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            for key in sorted({*old, *new}, key=str)
            if old.get(key) != new.get(key)
        ]
        return "; ".join(parts)
    return f"{path} is {old!r} there and {new!r} here"
