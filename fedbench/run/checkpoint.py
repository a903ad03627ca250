"""The state of a run after a round, in one safetensors file. Saving replaces the file atomically and keeps the previous one.

The file's metadata holds the round, a checksum of the file's whole content, and the checksums that the run's other files
had when it was saved. A reader can therefore recognise a damaged checkpoint, and one that no longer fits the records.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedbench.base.record_schema import TotalCosts
from fedbench.base.storage import atomic_write, errors_at, is_away

log = logging.getLogger("fedbench")

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after `round` rounds, their costs, and the seconds they took.

    `files`: SHA-256 of records.jsonl, and after the last round of clients.parquet, as the run had written them. Empty in
    checkpoints of versions up to 0.1.
    """

    state: dict[str, Tensor]
    round: int
    totals: TotalCosts
    seconds: float
    files: Mapping[str, str] = field(default_factory=dict)


def save(
    folder: Path,
    state: Mapping[str, Tensor],
    round_: int,
    totals: TotalCosts,
    seconds: float,
    files: Mapping[str, str] | None = None,
) -> None:
    """Save `state` after `round_` rounds, with the costs and seconds of these rounds. Raises OSError."""
    values = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    numbers = {name.removeprefix("total_"): value for name, value in vars(totals).items()} | {"seconds": seconds}
    scalars = {f"total.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    metadata = {"round": str(round_), "files": json.dumps(files or {}, sort_keys=True)}
    metadata["checksum"] = _checksum(values | scalars, metadata)
    with atomic_write(folder / CURRENT, previous=folder / PREVIOUS) as file, errors_at(file):
        # The values are written without a copy, which may take gigabytes.
        save_file(values | scalars, file, metadata=metadata)


def load(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None if there is none. Raises OSError if the disk is away."""
    return next(undamaged(folder), None)


def undamaged(folder: Path) -> Iterator[Checkpoint]:
    """The undamaged checkpoints, newest first. A damaged one is logged.

    Raises OSError if the disk is away. Without that error, the run would find no checkpoint and start from the beginning.
    """
    names = {path.name for path in folder.iterdir()}  # raises where exists() only returns False
    for name in (CURRENT, PREVIOUS):
        if name not in names:
            continue
        try:
            saved = _read(folder / name)
        except Exception as error:  # the parser raises many types of error for a damaged header
            if is_away(error, folder):
                raise
            log.warning("%s is damaged (%s) and is not used", folder / name, " ".join(str(error).split()))
        else:
            yield saved


def _read(path: Path) -> Checkpoint:
    """The checkpoint in a file. Raises ValueError or another error if it is damaged."""
    with errors_at(path), safe_open(path, "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = dict(file.metadata())
    checksum = metadata.pop("checksum", None)  # absent in checkpoints of versions up to 0.1
    if checksum is not None and checksum != _checksum(values, metadata):
        raise ValueError("its checksum does not match its content")
    state = {key: value for key, value in values.items() if not key.startswith("total.")}
    numbers = {k.removeprefix("total."): v.item() for k, v in values.items() if k.startswith("total.")}
    seconds = numbers.pop("seconds")
    totals = TotalCosts(**{f"total_{key}": int(value) for key, value in numbers.items()})
    files = json.loads(metadata.get("files", "{}"))
    return Checkpoint(state, int(metadata["round"]), totals, seconds, files)


def _checksum(values: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of all tensors with their names, types and shapes, and of the metadata."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, value in sorted(values.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
