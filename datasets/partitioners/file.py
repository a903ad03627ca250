"""An explicit split from a file: one that others published, or that `fedbench data split --write` wrote.

Columns (ours): `image`, the sample's number in the dataset; `client`, 0..K-1; `split`, train, validation or test; optional
`held_out`, 0 or 1, the same in all rows of a client; optional `label`, which is compared with that of the dataset. Images that
the file does not name are not used. If no row is for validation, `clients.validation` is drawn from the training rows. If there
is no column `held_out`, `clients.held_out` is drawn; else it must be the number of clients that the file holds out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fedbench import data


@dataclass(frozen=True)
class Partitioner(data.SplitSource):
    """The split of a .csv, .csv.gz or .parquet file."""

    citation: ClassVar[str] = "the file's authors"
    path: Path = field(metadata={"meaning": "the .csv, .csv.gz or .parquet file"})

    def deal(self, samples: data.Samples, clients: int, seed: int, need: int) -> data.Dealt:
        """Read and check the file; nothing is drawn. Raises DataError."""
        return data.published.read(self.path, samples, clients, need)
