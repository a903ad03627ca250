"""Named random streams. Every draw in a run comes from a stream with a name, so no draw depends on the order of others."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed(*name: int | str) -> int:
    """The 63-bit seed of the stream called `name`, e.g. ``seed(0, "cohort", 12)``; stable across machines and versions.

    ``repr`` distinguishes ``1`` from ``"1"``, and 0 is a seed like any other.
    """
    digest = hashlib.sha256("/".join(repr(part) for part in name).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_stream(*name: int | str) -> np.random.Generator:
    """A NumPy generator on the stream called `name`."""
    return np.random.default_rng(seed(*name))


def torch_stream(*name: int | str) -> torch.Generator:
    """A CPU torch generator on the stream called `name`; draw on the CPU so that every device sees the same numbers."""
    import torch  # slow to import, and readers of records do not need it

    return torch.Generator().manual_seed(seed(*name))
