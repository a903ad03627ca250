"""Runs on disk: one folder for each run, which only this module reads and writes. All state is on disk; no torch is needed.

A run's folder holds run.yaml (its whole config), records.jsonl (one self-contained JSON object per evaluated round),
clients.parquet (accuracy per client at the end), env.json, checkpoint.safetensors, progress.json, log.txt, and `done` or
`failed.json` once the run has ended; notes.jsonl lists how earlier attempts ended. Every file but the logs is written to a
temporary file and moved. `done` holds the checksums of run.yaml, records.jsonl and clients.parquet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import yaml

from fedbench.base import lease, run_files
from fedbench.base.record_schema import EXECUTION
from fedbench.base.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("fedbench")

Status = Literal["missing", "pending", "running", "failed", "done"]

MEASURED = (
    EXECUTION  # columns that may differ between two executions of one run; all others are equal on one kind of machine
)
SEALED = tuple(run_files.SEAL)  # files whose checksums `done` holds

# libyaml's loader if there is one: a sweep of ten thousand runs reads as many files, ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class RecordsError(ValueError):
    """A results folder or a file in it that cannot be used. The message names the file and the expected content."""


class DamagedError(RecordsError):
    """A file of a run does not hold what the run wrote."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Readers of small files skip odd files and lines, and add a sentence for each to the list `problems`, if there is one.
    """

    path: Path

    # -- config ------------------------------------------------------------------------------------------------
    def plan(self, config: dict[str, Any]) -> None:
        """Make the folder and write run.yaml, or check that the existing one has the same identity.

        `config` holds at least "identity" (what changes the run's numbers); other keys may differ and are rewritten.
        A run.yaml that cannot be read is written again. Raises RecordsError if the folder holds another run.
        """
        self.path.parent.mkdir(exist_ok=True)  # but no folder above it, since its disk may be away
        self.path.mkdir(exist_ok=True)
        if self.check_identity(config["identity"]) == "" and self.config() == config:
            return
        write_atomically(self.path / "run.yaml", yaml.dump(config, Dumper=_DUMPER, sort_keys=False).encode())

    def check_identity(self, identity: Mapping[str, Any]) -> str:
        """What is wrong with run.yaml if the folder is of the run `identity`; "" if nothing is.

        The folder's name holds the identity's key, so a run.yaml that is missing, unreadable or different is a damaged
        file, unless the records were made by a run of another identity. Then RecordsError is raised.
        """
        try:
            on_disk = self.config()["identity"]
        except RecordsError as error:
            problem = str(error)
        else:
            if on_disk == identity:
                return ""
            problem = f"{self.path / 'run.yaml'}: {_difference(on_disk, dict(identity))}"
        made_by = {record["config_hash"] for record in self.records() if "config_hash" in record}
        if made_by and made_by != {config_hash(identity)}:
            raise RecordsError(
                f"{self.path} holds a run of another config under the same key: {problem}. "
                "Choose another --results folder or move this one away; nothing was changed."
            )
        return problem

    def config(self) -> dict[str, Any]:
        """The content of run.yaml. Raises RecordsError if it is missing or not a mapping, OSError if its disk is away."""
        path, problem = self.path / "run.yaml", ""
        try:
            config = yaml.load(path.read_bytes(), Loader=LOADER)  # noqa: S506 - a safe loader
        except FileNotFoundError:
            if path.name in os.listdir(self.path):  # noqa: PTH208 - raises where the folder is away
                raise  # the disk was away for a moment
            problem = "is missing"
        except OSError as error:
            raise RecordsError(f"{path}: cannot be read as a run's config ({error})") from error
        except Exception as error:  # noqa: BLE001 - a damaged file makes the parser raise many kinds
            problem = f"cannot be read as a run's config ({' '.join(str(error).split()):.200})"
        else:
            if not isinstance(config, dict):
                problem = f"expected a mapping, found {type(config).__name__}"
            elif not isinstance(config.get("identity"), dict):
                problem = "expected a mapping under `identity`, found " + type(config.get("identity")).__name__
        if problem:  # raised outside the `except` block: otherwise a missing file would look like a disk that is away
            raise RecordsError(f"{path}: {problem}")
        mapping: dict[str, Any] = config
        return mapping

    # -- records -----------------------------------------------------------------------------------------------
    def append(self, record: dict[str, Any]) -> None:
        """Append one evaluated round. A reader sees the whole line or nothing."""
        _append(self.path / "records.jsonl", record_line(record))

    def records(self, problems: list[str] | None = None) -> list[dict[str, Any]]:
        """All whole records in order, one for each evaluated round. An incomplete last line, left by a kill, is skipped."""
        problems = [] if problems is None else problems
        path = self.path / "records.jsonl"
        return [record for _, record in self._record_lines(run_files.content(path, problems) or b"", problems)]

    def record_lines(self, problems: list[str]) -> list[tuple[bytes, dict[str, Any]]]:
        """As `records`, as pairs (line, record). Raises OSError if the folder is away, since it may hold records."""
        path = self.path / "records.jsonl"
        if path.name not in os.listdir(self.path):  # noqa: PTH208 - raises where exists() is just False
            return []
        return self._record_lines(path.read_bytes(), problems)

    def _record_lines(self, data: bytes, problems: list[str]) -> list[tuple[bytes, dict[str, Any]]]:
        by_round: dict[int, tuple[bytes, dict[str, Any]]] = {}
        path, shape = self.path / "records.jsonl", run_files.record_shape()
        for line, record in run_files.lines(path, data, shape, problems, more_keys=True):
            by_round.setdefault(record["round"], (line, record))
        return list(by_round.values())

    def cut_records(self, last_round: int) -> list[bytes]:
        """Drop odd lines and records after `last_round`, which the run will make again. Returns the lines kept.

        Raises OSError if the folder is away.
        """
        path = self.path / "records.jsonl"
        kept = [line for line, record in self.record_lines([]) if record["round"] <= last_round]
        if kept or path in self.path.iterdir():
            write_atomically(path, b"".join(kept))
        return kept

    def missing_rounds(self, rounds: int, evaluate_every: int, up_to: int | None = None) -> list[int]:
        """The rounds that lack the record of a due evaluation; `up_to`: only rounds up to this one."""
        recorded = {record["round"] for record in self.records()}
        return [round_ for round_ in due_rounds(rounds, evaluate_every, up_to) if round_ not in recorded]

    def code_versions(self) -> list[str]:
        """The versions of the code that made the records, in order; more than one if the code changed during the run."""
        return list(dict.fromkeys(str(record["code"]) for record in self.records() if record.get("code")))

    # -- state -------------------------------------------------------------------------------------------------
    def progress(self, problems: list[str] | None = None) -> dict[str, Any]:
        """The run's progress ({} before its first round): round, rounds, time, images_per_second, seconds, device."""
        return self._mapping("progress.json", run_files.PROGRESS, problems)

    def report_progress(self, **progress: Any) -> None:
        """Replace progress.json."""
        write_atomically(self.path / "progress.json", run_files.encode(progress))

    def failure(self, problems: list[str] | None = None) -> dict[str, Any]:
        """{} or {"kind", "reason", "round", "log"} of a failed run; kind is a key of `jobs.failures.MORE_ATTEMPTS`."""
        return self._mapping("failed.json", run_files.FAILURE, problems)

    def fail(self, kind: str, reason: str, **more: Any) -> None:
        """Mark the run as failed."""
        failure = {"kind": kind, "reason": reason, "log": str(self.log), **more}
        write_atomically(self.path / "failed.json", run_files.encode(failure))

    def finish(self, expected: Mapping[str, str] | None = None) -> None:
        """Mark the run as done, as its last step. `expected`: checksums of files as the run wrote them.

        Raises DamagedError if a file no longer has its checksum.
        """
        names = set(os.listdir(self.path))  # noqa: PTH208 - raises where exists() is just False
        seal = {name: run_files.checksum(self.path / name) for name in SEALED if name in names}
        changed = [name for name, checksum in (expected or {}).items() if seal.get(name) != checksum]
        if changed:
            raise DamagedError(f"{self.path / changed[0]} was changed or removed during the run")
        (self.path / "failed.json").unlink(missing_ok=True)
        write_atomically(self.path / "done", run_files.encode(seal))

    def damage(self) -> list[str]:
        """Why a run that is marked as done is not whole; empty if it is. Raises OSError if the folder is away."""
        names = set(os.listdir(self.path))  # noqa: PTH208 - raises where exists() is just False
        if missing := [name for name in SEALED if name not in names]:
            return [f"{self.path / name} is missing" for name in missing]
        if not (self.path / "done").read_bytes():
            return self._unsealed_damage()
        problems: list[str] = []
        seal = run_files.mapping(self.path / "done", run_files.SEAL, problems)
        changed = [name for name in seal if run_files.checksum(self.path / name) != seal[name]]
        return problems + [f"{self.path / name} does not hold what the run wrote" for name in changed]

    def _unsealed_damage(self) -> list[str]:
        """`damage` of a run whose `done` holds no checksums, as versions up to 0.1 wrote it."""
        try:
            run = self.config()["run"]
            missing = self.missing_rounds(int(run["rounds"]), int(run["evaluate_every"]))
        except RecordsError as error:
            return [str(error)]
        except (KeyError, TypeError, ValueError):
            return [f"{self.path / 'run.yaml'}: expected a run with its rounds"]
        problems = [f"{self.path / 'records.jsonl'} lacks {rounds_in_words(missing)}"] if missing else []
        return problems + self.unreadable_clients()

    def unreadable_clients(self) -> list[str]:
        """A sentence if clients.parquet cannot be read."""
        from pyarrow import parquet  # slow to import, and only old runs need it here

        path = self.path / "clients.parquet"
        try:
            parquet.ParquetFile(path).read(["client", "accuracy"], use_threads=False)
        except Exception as error:  # noqa: BLE001 - a damaged file makes the parser raise many kinds
            return [f"{path} cannot be read ({' '.join(str(error).split()):.200})"]
        return []

    def reopen(self) -> None:
        """Open a finished run again, because it is damaged."""
        (self.path / "done").unlink(missing_ok=True)

    def clear_failure(self) -> None:
        """Let a failed run be tried again."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def note(self, **words: Any) -> None:
        """Append a note on how an attempt ended: "kind", "reason" and more."""
        for sentence in self.mend():
            log.warning("%s", sentence)
        _append(self.path / "notes.jsonl", run_files.encode({"time": time.time(), **words}) + b"\n")

    def notes(self, problems: list[str] | None = None) -> list[dict[str, Any]]:
        """All notes, oldest first."""
        path, problems = self.path / "notes.jsonl", [] if problems is None else problems
        data = run_files.content(path, problems) or b""
        return [note for _, note in run_files.lines(path, data, run_files.NOTE, problems)]

    def mend(self) -> list[str]:
        """Move a damaged env.json or notes.jsonl aside, and keep the readable notes; a sentence for each such file."""
        of_environment, of_notes, said = list[str](), list[str](), []
        self.environment(of_environment)
        notes = self.notes(of_notes)
        for name, problems, kept in (("env.json", of_environment, []), ("notes.jsonl", of_notes, notes)):
            path = self.path / name
            if problems and run_files.content(path, []) is not None:  # else it is only unreadable at the moment
                aside = run_files.set_aside(path)
                for note in kept:
                    _append(path, run_files.encode(note) + b"\n")
                said.append(f"{'; '.join(problems)}; the file was moved to {aside.name}")
        return said

    def job(self, problems: list[str] | None = None) -> dict[str, Any]:
        """{} or the run's last job: {"scheduler", "log", "sweep", and "id" (Slurm) or "owners" (processes)}."""
        problems = [] if problems is None else problems
        value = self._mapping("job.json", run_files.JOB, problems)
        if value and not ("id" in value if value["scheduler"] == "slurm" else "owners" in value):
            problems.append(f"{self.path / 'job.json'}: neither a job nor a process; it is ignored")
            return {}
        return value

    def environment(self, problems: list[str] | None = None) -> dict[str, Any]:
        """The content of env.json: where the run was computed."""
        return self._mapping("env.json", run_files.ENVIRONMENT, problems)

    def _mapping(self, name: str, shape: run_files.Shape, problems: list[str] | None) -> dict[str, Any]:
        return run_files.mapping(self.path / name, shape, [] if problems is None else problems)

    def problems(self) -> list[str]:
        """A sentence for each odd file of the run, which cannot be read or does not have the expected shape."""
        problems: list[str] = []
        names = self.files()
        if "run.yaml" in names:
            with suppress(OSError):
                try:
                    self.config()
                except RecordsError as error:
                    problems.append(str(error))
        for read in (self.progress, self.failure, self.notes, self.job, self.environment, self.records):
            read(problems)
        for name in sorted(name for name in names if name.startswith("claim")):
            if lease.CLAIM.fullmatch(name):
                lease.owner_of(self.path / name, problems)
            else:
                problems.append(f"{self.path / name}: no claim file of ours; it is ignored")
        return problems

    def files(self) -> frozenset[str]:
        """The names of all files, from one listing; empty if there is no folder."""
        try:
            return frozenset(os.listdir(self.path))  # noqa: PTH208 - a tenth of the time, ten thousand times over
        except OSError:
            return frozenset()

    @property
    def log(self) -> Path:
        """The path of the run's log."""
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


def record_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of records.jsonl."""
    return json.dumps(record).encode() + b"\n"


def config_hash(identity: Mapping[str, Any]) -> str:
    """16 hex digits of a run's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def due_rounds(rounds: int, evaluate_every: int, up_to: int | None = None) -> list[int]:
    """The evaluated rounds of a run: every `evaluate_every` rounds and the last; `up_to`: only rounds up to this one."""
    last = rounds if up_to is None else min(up_to, rounds)
    return [round_ for round_ in range(1, last + 1) if round_ % evaluate_every == 0 or round_ == rounds]


def rounds_in_words(rounds: Sequence[int]) -> str:
    """``round 3`` or ``rounds 1, 2, 3, 4 and 6 more``."""
    shown = ", ".join(map(str, rounds[:4]))
    more = f" and {len(rounds) - 4} more" if len(rounds) > 4 else ""
    return f"round{'s' if len(rounds) > 1 else ''} {shown}{more}"


def run_folders(results: Path) -> Iterator[RunFolder]:
    """Every run below `results`, sorted by name."""
    if results.is_dir():
        for path in sorted(results.iterdir()):
            if (path / "run.yaml").is_file():
                yield RunFolder(path)


def load(folders: Iterable[RunFolder]) -> pd.DataFrame:
    """All records of `folders`, one row per evaluated round, with a "status" column of the run's state."""
    import pandas as pd  # slow to import, and only readers of tables need it

    return pd.DataFrame([record | {"status": folder.status} for folder in folders for record in folder.records()])


def _append(path: Path, line: bytes) -> None:
    """Append a line and sync it to disk. First remove an incomplete line that a full disk or a kill left."""
    with open(path, "ab+", buffering=0) as file:
        size = file.tell()
        while size and _byte_at(file, size - 1) != b"\n":
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


def _byte_at(file: IO[bytes], position: int) -> bytes:
    file.seek(position)
    return file.read(1)


def _difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            for key in sorted({*old, *new}, key=str)
            if old.get(key) != new.get(key)
        ]
        return "; ".join(parts)
    return f"{path} is {old!r} there and {new!r} here"
