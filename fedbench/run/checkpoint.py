"""The state of a run after a round, in one safetensors file written aside and moved; the one before it is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedbench.base.storage import aside, errors_at, is_away

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


def save(folder: Path, state: dict[str, Tensor], round_: int, totals: dict[str, int | float]) -> None:
    """Keep `state` as it is after `round_` rounds, and the running `totals`."""
    values = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    numbers = {f"total.{name}": torch.tensor(value, dtype=torch.float64) for name, value in totals.items()}
    with aside(folder / CURRENT, previous=folder / PREVIOUS) as file, errors_at(file):
        # From where the values lie: a copy may be gigabytes.
        save_file(values | numbers, file, metadata={"round": str(round_)})


def load(folder: Path) -> tuple[dict[str, Tensor], int, dict[str, float]] | None:
    """(state, rounds done, totals) of the newest whole checkpoint, or None where there is none.

    Raises what the disk says where it is away: a run that took that for no checkpoint would begin anew.
    """
    there = {path.name for path in folder.iterdir()}  # raises where exists() is just False
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
            continue  # cut in half: the one before it is whole
        state = {key: value for key, value in values.items() if not key.startswith("total.")}
        totals = {k.removeprefix("total."): v.item() for k, v in values.items() if k.startswith("total.")}
        return state, round_, totals
    return None
