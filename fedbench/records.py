"""Runs on disk: one folder a run, read and written here alone. The disk is the state; nothing here imports torch.

A run's folder holds run.yaml (its whole config), records.jsonl (one self-contained JSON object per evaluated round),
clients.parquet (accuracy per client at the end), env.json, checkpoint.safetensors, progress.json, log.txt, and one of
`done` or `failed.json` once it has ended. Every file is written aside and moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

Status = Literal["missing", "pending", "running", "failed", "done"]

# What a clock or a memory counter says; everything else in a record is the same in every execution of a run.
MEASURED = ("seconds", "samples_per_second", "peak_memory_bytes", "commit")

# libyaml's, where there is one: a sweep of ten thousand runs reads as many files, ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class RecordsError(ValueError):
    """A results folder that cannot be used; says which file and what was expected."""


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which is whole or absent at any moment."""
    with aside(path) as file:
        file.write_bytes(data)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` to be written, which is moved there in the end."""
    file = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield file
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        os.replace(file, path)
    finally:
        file.unlink(missing_ok=True)


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
        self.path.mkdir(parents=True, exist_ok=True)
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
            config = yaml.load(path.read_text(), Loader=_LOADER)  # noqa: S506 - a safe one
        except (OSError, yaml.YAMLError) as error:
            raise RecordsError(f"{path}: cannot be read as a run's config ({error})") from error
        if not isinstance(config, dict):
            raise RecordsError(f"{path}: expected a mapping, found {type(config).__name__}")
        return config

    # -- records -----------------------------------------------------------------------------------------------
    def append(self, record: dict[str, Any]) -> None:
        """Add one evaluated round; a whole line or nothing once read back."""
        with open(self.path / "records.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """All whole records, in order; a half-written last line is passed over."""
        path = self.path / "records.jsonl"
        if not path.exists():
            return []
        found = []
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def cut_records(self, last_round: int) -> None:
        """Drop records after `last_round` (they lie beyond the checkpoint and will be made again)."""
        keep = [record for record in self.records() if record["round"] <= last_round]
        write_aside(self.path / "records.jsonl", "".join(json.dumps(record) + "\n" for record in keep).encode())

    # -- state -------------------------------------------------------------------------------------------------
    def progress(self) -> dict[str, Any]:
        """What the run last said of itself ({} before its first word): round, rounds, time, images_per_second, pid, host."""
        return _json(self.path / "progress.json")

    def say(self, **progress: Any) -> None:
        """Replace progress.json."""
        write_aside(self.path / "progress.json", json.dumps(progress).encode())

    def failure(self) -> dict[str, Any]:
        """{} or {"kind", "reason", "round", "log"} of a failed run; kind is one of diverged, data, error, ..."""
        return _json(self.path / "failed.json")

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

    @property
    def log(self) -> Path:
        """Where the run writes its log."""
        return self.path / "log.txt"

    @property
    def status(self) -> Status:
        """missing: no folder; pending: planned; running: has progress; failed; done."""
        if (self.path / "done").exists():
            return "done"
        if (self.path / "failed.json").exists():
            return "failed"
        if (self.path / "progress.json").exists():
            return "running"
        return "pending" if (self.path / "run.yaml").exists() else "missing"


def run_folders(results: Path) -> Iterator[RunFolder]:
    """Every run below `results`, sorted by name."""
    if results.is_dir():
        for path in sorted(results.iterdir()):
            if (path / "run.yaml").is_file():
                yield RunFolder(path)


def load(folders: Iterable[RunFolder]) -> pd.DataFrame:
    """All records of `folders`, one row per evaluated round, with a "status" column of the run's state."""
    return pd.DataFrame([record | {"status": folder.status} for folder in folders for record in folder.records()])


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            for key in sorted({*old, *new}, key=str)
            if old.get(key) != new.get(key)
        ]
        return "; ".join(parts)
    return f"{path} is {old!r} there and {new!r} here"
