"""Files of published runs: finished runs packed into one parquet file, which other people's reports can read.

Not to be confused with `report.paper_numbers`, the numbers that papers print. A file is data: it is checked on reading, and
nothing in it is executed. A row is a run: its name, identity, label, tuning, provenance and records as JSON texts, and
lists with a value per client. The same runs give the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pyarrow import ArrowException, parquet

from fedbench.base import run_files
from fedbench.base.files import open_file
from fedbench.base.record_schema import INFERENCE
from fedbench.base.records import RecordsError, RunFolder, config_hash, due_rounds, record_line
from fedbench.base.storage import atomic_write

FORMAT = {"fedbench": "published runs, version 1"}  # in the metadata of the parquet file
LARGEST_BYTES = 1 << 30  # of a file's content once it is decompressed
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
# What env.json says about the computation. Host names, commands and paths are left out.
PROVENANCE_KEYS = (
    *("python", "torch", "timm", "numpy", "device", "processor"),
    *("threads", "commit", "dirty", "code", "pack", "compile"),
)
PROVENANCE: run_files.Shape = {key: run_files.ENVIRONMENT[key] for key in PROVENANCE_KEYS}
TEXTS = ("run", "label", "identity", "tuning", "provenance", "records")
CLIENT_TYPES = {
    "client": pa.int64(),
    "held_out": pa.bool_(),
    "train_samples": pa.int64(),
    "test_samples": pa.int64(),
    "accuracy": pa.float64(),
    "val_accuracy": pa.float64(),
}
SHARES = ("accuracy", "val_accuracy")  # null for a client without samples
SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in TEXTS]
    + [pa.field(name, pa.list_(kind)) for name, kind in CLIENT_TYPES.items()]
    + [pa.field(INFERENCE, pa.int64())],
    metadata=FORMAT,
)


class PublishedRunsError(ValueError):
    """A file of published runs cannot be used. The message names the file and the reason."""


@dataclass(frozen=True)
class PublishedRun:
    """A finished run. clients: a list with a value per client for each of `CLIENT_TYPES`, None where there are no samples;
    inference: multiply-adds of classifying an image, None in runs of versions up to 0.1."""

    name: str
    label: str
    identity: dict[str, Any]
    tuning: dict[str, Any]
    provenance: dict[str, Any]
    records: list[dict[str, Any]]
    clients: dict[str, list[Any]]
    inference: int | None


def of_folder(folder: RunFolder) -> PublishedRun:
    """The run in a folder that is marked as done. Raises PublishedRunsError if its files are damaged."""
    problems: list[str] = []
    try:
        problems += folder.damage()
        config = folder.config()
        records, environment = folder.records(problems), folder.environment(problems)
        table = parquet.ParquetFile(folder.path / "clients.parquet").read(list(CLIENT_TYPES))
        inference = (table.schema.metadata or {}).get(INFERENCE.encode())
        columns = {
            name: pa.array(table.column(name).to_numpy(), kind, from_pandas=True).to_pylist()
            for name, kind in CLIENT_TYPES.items()
        }
    except (OSError, RecordsError, ArrowException, ValueError, TypeError, KeyError) as error:
        raise PublishedRunsError(" ".join(str(error).split())) from error
    if problems:
        raise PublishedRunsError(problems[0])
    run = PublishedRun(
        folder.path.name,
        str(config.get("label")),
        config["identity"],
        dict(config.get("tuning") or {}),
        {key: environment[key] for key in PROVENANCE_KEYS if key in environment},
        records,
        columns,
        int(inference) if inference is not None else None,
    )
    if fault := _fault(run):
        raise PublishedRunsError(f"{folder.path}: {fault}")
    return run


def write(path: Path, runs: Iterable[PublishedRun]) -> None:
    """Write `runs`, sorted by name, into the file `path`. Raises OSError."""
    rows = [_row(run) for run in sorted(runs, key=lambda run: run.name)]
    table = pa.Table.from_pylist(rows, SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        parquet.write_table(table, file, compression="zstd", compression_level=19, write_page_checksum=True)


def _row(run: PublishedRun) -> dict[str, Any]:
    values = (run.identity, run.tuning, run.provenance, run.records)
    texts = (run.name, run.label, *(json.dumps(value, default=str, allow_nan=False) for value in values))
    return dict(zip(TEXTS, texts, strict=True)) | run.clients | {INFERENCE: run.inference}


def read(path: Path) -> list[PublishedRun]:
    """All runs of a file. Raises PublishedRunsError, with the reason, if the file is damaged or of another kind."""
    try:
        with open_file(path) as file, parquet.ParquetFile(file, page_checksum_verification=True) as content:
            if content.schema_arrow.metadata != SCHEMA.metadata or not content.schema_arrow.equals(SCHEMA):
                raise PublishedRunsError(f"{path}: not a file that `fedbench publish` made; {_columns(content)}")
            groups = [content.metadata.row_group(i).total_byte_size for i in range(content.num_row_groups)]
            if sum(groups) > LARGEST_BYTES:
                raise PublishedRunsError(f"{path}: its content is larger than {LARGEST_BYTES >> 30} GiB")
            rows = content.read(use_threads=False).to_pylist()
    except (OSError, ArrowException, ValueError) as error:
        if isinstance(error, PublishedRunsError):
            raise
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise PublishedRunsError(f"{path}: cannot be read as a file of published runs ({reason})") from error
    runs = [_parsed(row, f"{path}, run {number}") for number, row in enumerate(rows, 1)]
    if not runs or len({run.name for run in runs}) < len(runs):
        raise PublishedRunsError(f"{path}: {'holds a run twice' if runs else 'holds no runs'}")
    return runs


def _columns(content: parquet.ParquetFile) -> str:
    """The difference between the columns of a file and those expected, in words."""
    names = content.schema_arrow.names
    missing = [name for name in SCHEMA.names if name not in names]
    unknown = [name for name in names if name not in SCHEMA.names]
    odd = [field.name for field in SCHEMA if field.name in names and content.schema_arrow.field(field.name) != field]
    parts = (("it lacks", missing), ("it has the unknown", unknown), ("other types have", odd))
    said = "; ".join(f"{what} {', '.join(listed[:6])}" for what, listed in parts if listed)
    return said or f"its metadata should be {FORMAT}"


def _parsed(row: Mapping[str, Any], where: str) -> PublishedRun:
    values = {}
    for name in TEXTS:
        if row[name] is None:
            raise PublishedRunsError(f"{where}: {name} is missing")
    where = f"{where} ({row['run'][:80]})"
    for name in ("identity", "tuning", "provenance", "records"):
        try:
            values[name] = json.loads(row[name], parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise PublishedRunsError(f"{where}: {name} is not JSON ({str(error)[:80]})") from error
        kind, word = (list, "a list") if name == "records" else (dict, "a mapping")
        if not isinstance(values[name], kind):
            raise PublishedRunsError(f"{where}: expected {word} in {name}")
    clients = {name: row[name] for name in CLIENT_TYPES}
    run = PublishedRun(row["run"], row["label"], **values, clients=clients, inference=row[INFERENCE])
    if fault := _fault(run):
        raise PublishedRunsError(f"{where}: {fault}")
    return run


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def _fault(run: PublishedRun) -> str:
    """What is wrong with a run; "" if nothing is."""
    digest = config_hash(run.identity)
    if not SAFE_NAME.fullmatch(run.name) or not run.name.endswith(f"-{digest[:8]}"):
        return f"its name {run.name[:80]!r} is not that of its identity, which ends in -{digest[:8]}"
    if not run.label.strip():
        return "its label is empty"
    if fault := run_files.misfit(run.provenance, PROVENANCE):
        return f"provenance: {fault}"
    return _records_fault(run, digest) or _clients_fault(run)


def _records_fault(run: PublishedRun, digest: str) -> str:
    for record in run.records:
        if fault := run_files.misfit(record, run_files.record_shape(), more_keys=True):
            return f"records: {fault}"
        if (record.get("config_hash"), record.get("run")) != (digest, run.name):
            return f"round {record['round']}: the record is of another run"
    try:
        due = due_rounds(int(run.identity["rounds"]), int(run.identity["evaluate_every"]))
        int(run.identity["seed"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return "identity: expected a run with its rounds and its seed"
    if [record["round"] for record in run.records] != due:
        return f"records: expected one for each of the rounds {', '.join(map(str, due[:6]))}{', ...' * (len(due) > 6)}"
    return ""


def _clients_fault(run: PublishedRun) -> str:
    columns = run.clients
    if any(values is None for values in columns.values()) or len({len(values) for values in columns.values()}) != 1:
        return "clients: expected as many values in each column"
    for name, values in columns.items():
        if name in SHARES:
            wrong = [value for value in values if value is not None and not 0 <= value <= 1]  # NaN is wrong as well
        else:
            wrong = [value for value in values if value is None or value < 0]
        if wrong:
            return f"clients: {name} is {wrong[0]}, expected {'shares from 0 to 1' if name in SHARES else 'counts'}"
    mean = run.records[-1].get("mean_accuracy")
    pairs = zip(columns["accuracy"], columns["held_out"], strict=True)
    known = [value for value, held_out in pairs if value is not None and not held_out]
    if mean is not None and (not known or abs(math.fsum(known) / len(known) - mean) > 1e-9):
        return "clients: the mean of their accuracies is not that of the last record"
    return ""


def unpack(run: PublishedRun, results: Path) -> RunFolder:
    """Write a run as a finished run's folder below `results`, as readers of folders expect it. Raises OSError."""
    folder = RunFolder(results / run.name)
    folder.path.mkdir()
    config = {"identity": run.identity, "label": run.label} | ({"tuning": run.tuning} if run.tuning else {})
    (folder.path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder.path / "records.jsonl").write_bytes(b"".join(map(record_line, run.records)))
    arrays = {name: _array(name, values) for name, values in run.clients.items()}
    metadata = {INFERENCE: str(run.inference)} if run.inference is not None else None
    parquet.write_table(pa.table(arrays, metadata=metadata), folder.path / "clients.parquet")
    folder.finish()
    return folder


def _array(name: str, values: list[Any]) -> pa.Array:
    """A client column as runs write it: NaN where a client has no samples."""
    if name in SHARES:
        return pa.array(np.array([math.nan if value is None else value for value in values], dtype=np.float64))
    return pa.array(values, CLIENT_TYPES[name])
