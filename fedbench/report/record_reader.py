"""Reads records and client tables from a run's folder, and checks them against the record schema.

A file with wrong content, such as text for an accuracy, 750 %, or an integer too large for a float, raises RecordsError, which
names the file and the column. The report then leaves out that run and continues.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet

from fedbench.base.record_schema import INFERENCE
from fedbench.base.records import RecordsError, RunFolder

CLIENT_COLUMNS = ("client", "held_out", "accuracy")

Clients = dict[str, NDArray[Any]]


def read_records(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a run, one for each evaluated round. Raises RecordsError for a record that violates the schema."""
    problems: list[str] = []
    records = folder.records(problems)
    if problems:
        raise RecordsError(problems[0])
    return records


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
