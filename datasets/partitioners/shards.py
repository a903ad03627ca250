"""Shards: samples sorted by class are cut into equal shards, and every client takes a few of them.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv:1602.05629): sort
by label, cut into 2 shards per client, give each client 2 of them (paper). A client then holds few classes; a shard may
hold samples of two neighbouring classes. Test samples follow by the same shares of each class (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench import data
from fedbench.data import option


@dataclass(frozen=True)
class Partitioner(data.Partitioner):
    """Exactly `shards_per_client` shards for each client; shards differ by at most one sample."""

    citation: ClassVar[str] = "McMahan et al. 2017, arXiv:1602.05629"
    shards_per_client: Annotated[int, Field(ge=1)] = option(2, "how many shards each client takes", always_shown=True)
    redraws: Annotated[int, Field(ge=1)] = option(100, "how many splits to draw before giving up on min_train")

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """What part of each class lies in each client's shards, [C, clients]. Raises DataError."""
        counts = np.bincount(samples.labels[~samples.is_test], minlength=samples.num_classes)
        total, pieces = int(counts.sum()), clients * self.shards_per_client
        if pieces > total:
            raise data.DataError(
                f"impossible split: {clients} clients with {self.shards_per_client} shards each are {pieces} shards of "
                f"{total} training samples; lower clients.number or shards_per_client"
            )
        owner = stream.permutation(np.repeat(np.arange(clients), self.shards_per_client))
        edges = np.rint(np.linspace(0, total, pieces + 1)).astype(np.int64)
        ends = np.cumsum(counts)
        # Cutting at the edges of shards and of classes gives stretches that lie in one shard and in one class.
        cuts = np.unique(np.concatenate([edges, ends]))
        shard = np.searchsorted(edges, cuts[:-1], side="right") - 1
        label = np.searchsorted(ends, cuts[:-1], side="right")
        held = np.zeros((len(counts), clients))
        np.add.at(held, (label, owner[shard]), np.diff(cuts))
        held[counts == 0] = 1 / clients  # a class without training samples: its test samples
        held /= np.maximum(counts, 1)[:, None]
        return held
