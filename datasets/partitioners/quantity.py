"""Quantity skew: clients differ in how many samples they hold, not in which.

Acar et al. 2021, "Federated Learning Based on Dynamic Regularization" (FedDyn, arXiv:2111.04263): sizes from a log-normal
with the mean size as its median, then scaled to all samples (code). Test samples are dealt by the same sizes (ours).
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
    """Shuffled samples cut into parts of log-normal size."""

    citation: ClassVar[str] = "Acar et al. 2021 (FedDyn), arXiv:2111.04263"
    sigma: Annotated[float, Field(ge=0, le=10)] = option(
        0.3, "standard deviation of the logarithm of a client's size", always_shown=True
    )
    redraws: Annotated[int, Field(ge=1)] = option(100, "how many splits to draw before giving up on min_train")

    def groups(self, samples: data.Samples) -> data.Ints:
        """One group of all samples."""
        return np.zeros(len(samples.labels), dtype=np.int64)

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Each client's share of all samples, [1, clients]."""
        sizes = stream.lognormal(sigma=self.sigma, size=(1, clients))
        return np.asarray(sizes / sizes.sum())
