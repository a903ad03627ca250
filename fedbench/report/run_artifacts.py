"""What a finished run leaves besides its records: its last state as arrays, and which classes its clients hold; no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import ArrowInvalid, parquet
from safetensors import SafetensorError, safe_open

CHECKPOINT = "checkpoint.safetensors"


def state(folder: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    """Tensors of the last checkpoint that are called one of `names`: ``server.<name>``, and ``client.<name>`` with the rows
    of all clients that have one, [clients, ...] in their order; {} without a checkpoint."""
    found: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, dict[int, NDArray[np.float64]]] = {}
    try:
        with safe_open(folder / CHECKPOINT, "np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                home, _, name = key.partition(".")
                if home == "server" and name in names:
                    found[key] = file.get_tensor(key).astype(np.float64)
                elif home == "client" and (whole := name.rpartition("."))[0] in names:
                    rows.setdefault(whole[0], {})[int(whole[2])] = file.get_tensor(key).astype(np.float64)
    except (OSError, SafetensorError, TypeError, ValueError):  # absent, cut, or in bfloat16
        return {}
    return found | {f"client.{name}": np.stack([own[k] for k in sorted(own)]) for name, own in rows.items()}


def class_counts(folder: Path) -> pd.DataFrame:
    """Training samples by client and class: client, class, samples; empty where the run does not tell."""
    columns = ["client", "class", "samples"]
    try:
        table = parquet.ParquetFile(folder / "clients.parquet").read(["client", "classes", "class_samples"])
    except (OSError, ValueError, KeyError, ArrowInvalid):
        return pd.DataFrame(columns=columns)
    if table.num_columns < 3:
        return pd.DataFrame(columns=columns)
    frame: pd.DataFrame = table.to_pandas().explode(["classes", "class_samples"]).dropna()
    return pd.DataFrame(frame.set_axis(columns, axis=1).astype(int))
