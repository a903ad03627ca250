"""The file of `clients.available`: which clients are available in which round."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedbench.data import Ints

COLUMNS = ["round", "client"]


def read_availability(path: Path, clients: int) -> Sequence[Ints]:
    """The available clients of each round of the file, in ascending order; later rounds start again with the first.

    The file is CSV with the columns round (from 1, without gaps) and client (from 0), a row for each available client of a
    round. Raises ValueError with the line if it is not, and OSError.
    """
    rows: dict[int, set[int]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if (header := [name.strip() for name in next(reader, [])]) != COLUMNS:
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(header) or 'none'}")
        for line, row in enumerate(reader, 2):
            if not row:
                continue
            try:
                round_, client = map(int, row)
            except ValueError:
                raise ValueError(
                    f"{path}, line {line}: expected a round and a client, found {','.join(row)[:40]!r}"
                ) from None
            if round_ < 1 or not 0 <= client < clients:
                raise ValueError(
                    f"{path}, line {line}: expected a round from 1 on and a client of 0..{clients - 1}, "
                    f"found {round_} and {client}"
                )
            rows.setdefault(round_, set()).add(client)
    if not rows:
        raise ValueError(f"{path}: no round has an available client")
    if missing := [round_ for round_ in range(1, max(rows) + 1) if round_ not in rows]:
        raise ValueError(f"{path}: no client is available in round {missing[0]}")
    return [np.array(sorted(rows[round_]), dtype=np.int64) for round_ in range(1, max(rows) + 1)]
