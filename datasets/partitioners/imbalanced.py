"""Imbalanced classes: a few owners hold nearly all of a class, and all clients a little of it.

Weng et al. 2024, "Probabilistic Federated Prompt-Tuning with Non-IID and Imbalanced Data" (PFPT, arXiv:2502.19752): 99 % of
a class to its owners, 1 % to all clients by Dir(1) (paper). Every client owns `classes_per_client` classes, the numbers of
owners of two classes differ by at most one, owners share equally, and test samples follow by the same shares (ours).
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
    """A few large classes for each client, and a few samples of others."""

    citation: ClassVar[str] = "Weng et al. 2024 (PFPT), arXiv:2502.19752"
    classes_per_client: Annotated[int, Field(ge=1)] = option(10, "how many classes each client owns", always_shown=True)
    owned: Annotated[float, Field(gt=0, le=1)] = option(0.99, "share of a class that its owners hold together")
    alpha: Annotated[float, Field(gt=0, le=1e6)] = option(1.0, "concentration of the rest of a class over all clients")
    redraws: Annotated[int, Field(ge=1)] = option(100, "how many splits to draw before giving up on min_train")

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Shares of each class's owners and of everyone, [C, clients]. Raises DataError."""
        owners = data.level_owners(samples.num_classes, clients, self.classes_per_client, stream)
        rest = stream.dirichlet(np.full(clients, self.alpha), size=len(owners))
        return np.asarray(self.owned * owners / owners.sum(1, keepdims=True) + (1 - self.owned) * rest)
