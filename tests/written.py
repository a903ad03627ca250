"""Run folders that a test writes itself, so that it can derive every number of a report about them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from fedbench.base.records import RunFolder
from fedbench.report import evidence
from fedbench.report.tables import grid
from fedbench.report.tables.summary import summary


def write_run(
    results: Path,
    label: str = "A",
    seed: int = 0,
    accuracies: Mapping[int, float] | None = None,
    *,
    state: str = "done",
    rounds: int = 20,
    alpha: float = 0.3,
    reference: bool = False,
    method: str | None = None,
    clients: bool = False,
    config: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
    inference: int | None = None,
    **record: Any,
) -> RunFolder:
    """A run with the given mean accuracy at each round (default: one record at the last round); worst is 0.2 lower."""
    method = method or "m" + re.sub(r"\W", "", label).lower()
    identity = {
        "backbone": {"name": "nano", "image_size": None},
        "dataset": {"name": "glyphs"},
        "partition": {"name": "dirichlet", "alpha": alpha},
        "method": {"name": method},
        "aggregation": {"name": "fedavg"},
        "seed": seed,
        "rounds": rounds,
        "clients": {"number": 4, "per_round": 2},
        "local": {"lr": 0.01},
    } | dict(config or {})
    name = f"{method}-glyphs-dirichlet-s{seed}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"
    folder = RunFolder(results / name)
    whole = {"identity": identity, "label": label, "sweep": "test", "run": identity, "plugins": []}
    folder.plan(whole | ({"tuning": dict(tuning)} if tuning else {}))
    if state == "pending":
        return folder
    for at, accuracy in ({rounds: 0.5} if accuracies is None else accuracies).items():
        line = {
            "run": name,
            "key": name[-8:],
            "sweep": "test",
            "method": method,
            "label": label,
            "reference": reference,
            "dataset": "glyphs",
            "partition": f"dirichlet(alpha={alpha})",
            "aggregation": "fedavg",
            "backbone": "nano@32",
            "seed": seed,
            "round": at,
            "rounds": rounds,
            "mean_accuracy": accuracy,
            "worst_accuracy": max(0.0, accuracy - 0.2),
            "p10_accuracy": max(0.0, accuracy - 0.1),
            "global_accuracy": None,
            "held_out_mean_accuracy": None,
            "train_loss": 1.0,
            "bytes_up": 1000,
            "bytes_down": 1000,
            "total_bytes_up": 1000 * at,
            "total_bytes_down": 1000 * at,
            "trained_parameters": 1234567,
            "total_multiply_adds": 10**9 * at,
            "seconds": 2.0 * at,
            "config_hash": name[-8:],
            "partition_hash": f"part-{alpha}-{seed}",
            "backbone_hash": "weights",
            "commit": "abc1234",
        }
        folder.append(line | record)
    if state == "done":
        if clients:
            last = list((accuracies or {rounds: 0.5}).values())[-1]
            spread = np.clip(last + np.array([-0.2, 0.0, 0.1, 0.1, -0.3]), 0, 1)  # the last one is held out
            held_out = [False] * 4 + [True]
            frame = pd.DataFrame(
                {
                    "client": range(5),
                    "held_out": held_out,
                    "train_samples": 9,
                    "test_samples": 9,
                    "accuracy": spread,
                    "classes": [[0, k] for k in range(1, 6)],
                    "class_samples": [[k, 9 - k] for k in range(1, 6)],
                }
            )
            table = pa.Table.from_pandas(frame)
            if inference is not None:
                table = table.replace_schema_metadata({"inference_multiply_adds": str(inference)})
            parquet.write_table(table, folder.path / "clients.parquet")
        folder.finish()
    elif state == "running":
        folder.report_progress(round=max(accuracies or {0: 0}), rounds=rounds)
    elif state in ("failed", "diverged"):
        folder.fail("diverged" if state == "diverged" else "error", f"why it {state} <b>", round=3)
    return folder


@cache
def summarise(results: Path) -> pd.DataFrame:
    """The summary of the runs below `results`, which the test has written before."""
    return summary(evidence.gather([], results).runs)


def cell(results: Path, label: str, metric: str = "mean_accuracy") -> Any:
    table = summarise(results)
    rows = table[(table["label"] == label) & (table["metric"] == metric)]
    assert len(rows) == 1
    return rows.iloc[0]


def shown(results: Path, label: str) -> grid.Cell:
    """The first cell (mean accuracy in the first setting) of a method's row in the main table."""
    (row,) = (row for row in grid.main_grids(summarise(results))[0].rows if row.label == label)
    return row.cells[0]
