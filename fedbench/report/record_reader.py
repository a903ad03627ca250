"""Reads records and client tables from a run's folder, and checks them against the record schema.

A file with wrong content - text for an accuracy, 750 %, an integer too large for a float - raises RecordsError, which
names the file and the column. The report then leaves out that run and continues.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet

from fedbench.base.record_schema import INFERENCE, columns
from fedbench.base.records import RecordsError, RunFolder
from fedbench.report.tables.metrics import METRIC

TYPES = {
    name: get_args(column.type) if isinstance(column.type, UnionType) else (column.type,)
    for name, column in columns().items()
}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
CLIENT_COLUMNS = ("client", "held_out", "accuracy")

Clients = dict[str, NDArray[Any]]


def read_records(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a run, one for each evaluated round. Raises RecordsError for a record that violates the schema."""
    path = folder.path / "records.jsonl"
    problems: list[str] = []
    try:
        records = folder.records(problems)
    except (OSError, RecursionError, ValueError) as error:
        raise RecordsError(f"{path}: cannot be read ({error})") from error
    if problems:
        raise RecordsError(problems[0])
    for record in records:
        for name, value in record.items():
            if value is not None and (fault := _fault(name, value)):
                raise RecordsError(f"{path}, round {str(record['round'])[:20]}: {name} is {_shown(value)}, {fault}")
    return records


def _fault(name: str, value: Any) -> str:
    """The fault of a column's value; "" if there is none, or if the schema does not have the column."""
    kinds = [kind for kind in TYPES.get(name, ()) if kind in WORDS]
    if not kinds:
        return ""
    if not any(_is_a(value, kind) for kind in kinds):
        return f"expected {' or '.join(WORDS[kind] for kind in kinds)}"
    share = name in METRIC and METRIC[name].kind == "share"
    return "expected a share from 0 to 1" if share and not (value != value or 0 <= value <= 1) else ""


def _is_a(value: Any, kind: type) -> bool:
    """Whether JSON's `value` is of type `kind`. NaN may stand for a number that was not finite; infinity may not."""
    if kind in (bool, str):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 10**300 or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "an integer of thousands of digits"
    return text if len(text) < 60 else f"{text[:40]}..."


def read_clients(folder: Path) -> Clients | None:
    """Client, held_out and accuracy of a finished run, [clients] each; None without a clients.parquet.

    The run's inference cost [1] is beside them, NaN in files of versions up to 0.1.

    Raises RecordsError if the file is damaged or an accuracy is not a share.
    """
    path = folder / "clients.parquet"
    try:
        file = parquet.ParquetFile(path)
        table = file.read(list(CLIENT_COLUMNS), use_threads=False)
        inference = int((file.schema_arrow.metadata or {}).get(INFERENCE.encode(), -1))
        columns = {name: table.column(name).to_numpy() for name in CLIENT_COLUMNS}
        accuracy = columns["accuracy"].astype(float)
        columns |= {"held_out": columns["held_out"].astype(bool), "accuracy": accuracy}
        columns[INFERENCE] = np.array([inference if inference >= 0 else math.nan])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, ArrowException) as error:
        raise RecordsError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from error
    known = accuracy[~np.isnan(accuracy)]
    if ((known < 0) | (known > 1)).any():
        raise RecordsError(f"{path}: an accuracy is {known.max():g}, expected shares from 0 to 1")
    return columns
