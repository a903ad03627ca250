"""The state of a run after a round, in one safetensors file written aside and moved; the previous one is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedbench.base.record_schema import TotalCosts
from fedbench.base.storage import aside, errors_at, is_away

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the server's state after `round` rounds, their costs, and the seconds they took."""

    state: dict[str, Tensor]
    round: int
    totals: TotalCosts
    seconds: float


def save(folder: Path, state: dict[str, Tensor], round_: int, totals: TotalCosts, seconds: float) -> None:
    """Keep `state` as it is after `round_` rounds, with their `totals` and `seconds`."""
    values = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    numbers = {name.removeprefix("total_"): value for name, value in vars(totals).items()} | {"seconds": seconds}
    scalars = {f"total.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    with aside(folder / CURRENT, previous=folder / PREVIOUS) as file, errors_at(file):
        # Written from where the values lie, since a copy may be gigabytes.
        save_file(values | scalars, file, metadata={"round": str(round_)})


def load(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None if there is none.

    Raises OSError if the disk is away: a run that took that for "no checkpoint" would begin anew.
    """
    there = {path.name for path in folder.iterdir()}  # raises where exists() only returns False
    for name in (CURRENT, PREVIOUS):
        if name not in there:
            continue
        try:
            with errors_at(folder / name), safe_open(folder / name, "pt") as file:
                values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
                round_ = int(file.metadata()["round"])
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            if is_away(error, folder):
                raise
            continue  # cut in half: the previous one is whole
        state = {key: value for key, value in values.items() if not key.startswith("total.")}
        numbers = {k.removeprefix("total."): v.item() for k, v in values.items() if k.startswith("total.")}
        seconds = numbers.pop("seconds")
        totals = TotalCosts(**{f"total_{key}": int(value) for key, value in numbers.items()})
        return Checkpoint(state, round_, totals, seconds)
    return None
