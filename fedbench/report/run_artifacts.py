"""Reads the artifacts of a finished run: its last state as arrays, and the classes of its clients. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet
from safetensors import SafetensorError, safe_open

CHECKPOINT = "checkpoint.safetensors"
DAMAGED = (OSError, SafetensorError, TypeError, ValueError, KeyError)  # absent, cut, in bfloat16, or of odd shapes

Arrays = dict[str, NDArray[np.float64]]


def state(folder: Path, names: Collection[str]) -> Arrays:
    """The tensors `names` of the last checkpoint: ``server.<name>``, and ``client.<name>`` with the rows
    of all clients that have one, [clients, ...], in their order; {} without a checkpoint."""
    arrays: Arrays = {}
    rows: dict[str, dict[int, NDArray[np.float64]]] = {}
    try:
        with safe_open(folder / CHECKPOINT, "np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                home, _, name = key.partition(".")
                if home == "server" and name in names:
                    arrays[key] = file.get_tensor(key).astype(np.float64)
                elif home == "client" and (whole := name.rpartition("."))[0] in names:
                    rows.setdefault(whole[0], {})[int(whole[2])] = file.get_tensor(key).astype(np.float64)
        by_client = {name: np.stack([by_number[k] for k in sorted(by_number)]) for name, by_number in rows.items()}
    except DAMAGED:
        return {}
    return arrays | {f"client.{name}": value for name, value in by_client.items()}


def server_state(folder: Path) -> Arrays:
    """All values of the server in the last checkpoint, ``server.<name>``; {} without a checkpoint."""
    arrays: Arrays = {}
    try:
        with safe_open(folder / CHECKPOINT, "np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key.startswith("server."):
                    value = file.get_tensor(key)
                    arrays[key] = value if value.dtype.kind in "iub" else value.astype(np.float64)
    except DAMAGED:
        return {}
    return arrays


def class_counts(folder: Path) -> pd.DataFrame:
    """Training samples by client and class: client, class, samples; empty if the run lacks them."""
    columns = ["client", "class", "samples"]
    nothing = pd.DataFrame(columns=columns)
    try:
        table = parquet.ParquetFile(folder / "clients.parquet").read(["client", "classes", "class_samples"])
        if table.num_columns < 3:
            return nothing
        frame = pd.DataFrame(table.to_pandas().explode(["classes", "class_samples"]).dropna())
        counts = frame.set_axis(columns, axis=1).astype(int)
    except (OSError, ValueError, TypeError, KeyError, ArrowException):
        return nothing
    return nothing if (counts < 0).any(axis=None) else counts
