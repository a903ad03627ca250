"""What a report accepts as a column's value, in records and in the table of clients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from written import write_run

from fedbench.base.record_schema import INFERENCE
from fedbench.base.records import RecordsError
from fedbench.report import run_artifacts
from fedbench.report.record_reader import read_clients, read_records

NUMBER, SHARE, COUNT = "a finite number", "a share from 0 to 1", "a whole number from 0 on"


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("mean_accuracy", 0.0, ""),
        ("mean_accuracy", 1, ""),
        ("mean_accuracy", None, ""),
        ("mean_accuracy", -0.001, f"{SHARE} or null"),
        ("mean_accuracy", 1.001, f"{SHARE} or null"),
        ("global_accuracy", "x", f"{SHARE} or null"),
        ("mean_accuracy", True, f"{SHARE} or null"),
        ("mean_accuracy", math.nan, f"{SHARE} or null"),
        ("train_loss", 7.5, ""),
        ("train_loss", -math.inf, f"{NUMBER} or null"),
        ("seconds", 1e300, ""),
        ("seconds", None, NUMBER),
        ("total_bytes_up", 2**100 - 1, ""),
        ("total_bytes_up", 2**100, COUNT),
        ("total_bytes_up", -1, COUNT),
        ("total_bytes_up", 1.0, COUNT),
        ("reference", 1, "true or false"),
        ("reference", False, ""),
        ("method", 5, "text"),
        ("not_a_column", [5], ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_records_value_must_be_of_its_columns_type(tmp_path: Path, column: str, value: Any, expected: str) -> None:
    folder = write_run(tmp_path, state="running", accuracies={1: 0.5})
    path = folder.path / "records.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | {column: value}) + "\n")
    if not expected:
        (record,) = read_records(folder)
        assert record[column] == value
    else:
        found = "a number of more than 100 bits" if value == 2**100 else repr(value)
        with pytest.raises(RecordsError) as error:
            read_records(folder)
        assert str(error.value) == f"{path}, line 1: {column}: expected {expected}, found {found}; it is ignored"


@pytest.mark.parametrize(
    ("accuracies", "fault"),
    [
        ([0.0, 1.0, math.nan], ""),
        ([0.5, -0.1, 0.2], "an accuracy is 0.5"),
        ([math.nan, 1.1, 1.0], "an accuracy is 1.1"),
    ],
    ids=["shares", "negative", "above one"],
)
@pytest.mark.parametrize("inference", [None, 0, 12])
def test_clients_have_shares_and_a_run_has_an_inference_cost_or_nan(
    tmp_path: Path, accuracies: list[float], fault: str, inference: int | None
) -> None:
    table = pa.table({"client": [0, 1, 2], "held_out": [0, 0, 1], "accuracy": accuracies})
    if inference is not None:
        table = table.replace_schema_metadata({INFERENCE: str(inference)})
    assert read_clients(tmp_path) is None
    parquet.write_table(table, tmp_path / "clients.parquet")
    if fault:
        with pytest.raises(RecordsError, match=fault):
            read_clients(tmp_path)
        return
    made = read_clients(tmp_path)
    assert made is not None
    assert made["held_out"].tolist() == [False, False, True]
    assert made["accuracy"][:2].tolist() == [0.0, 1.0]
    (cost,) = made[INFERENCE]
    assert cost == inference if inference is not None else math.isnan(cost)


def test_class_counts_leave_out_clients_without_samples_and_refuse_negative_ones(tmp_path: Path) -> None:
    path = tmp_path / "clients.parquet"
    assert run_artifacts.class_counts(tmp_path).empty
    for third, rows in (([2, 5], [[0, 1, 4], [0, 3, 6], [2, 0, 2], [2, 1, 5]]), ([2, -5], [])):
        table = {"client": [0, 1, 2], "classes": [[1, 3], [], [0, 1]], "class_samples": [[4, 6], [], third]}
        parquet.write_table(pa.table(table), path)
        assert run_artifacts.class_counts(tmp_path).to_numpy().tolist() == rows
    parquet.write_table(pa.table({"client": [0]}), path)
    assert list(run_artifacts.class_counts(tmp_path).columns) == ["client", "class", "samples"]
