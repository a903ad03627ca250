"""Dirichlet label skew by class: each class is dealt to all clients in shares drawn from one Dirichlet.

Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks" (arXiv:1905.12022): shares of each
class from Dir(alpha) (paper). Li et al. 2022, "Federated Learning on Non-IID Data Silos" (arXiv:2102.02079). A client
that already holds N/K samples gets none of the classes that follow, and the whole split is drawn again until every client
has 10 training samples (code, both). Test samples follow by the same shares, and a split in which a client has none is
drawn again as well (ours). Classes are dealt in random order, not by number (ours).
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
    """Small `alpha`: few clients hold most of a class; large `alpha`: equal shares."""

    citation: ClassVar[str] = "Yurochkin et al. 2019, arXiv:1905.12022; Li et al. 2022, arXiv:2102.02079"
    alpha: Annotated[float, Field(gt=0, le=1e6)] = option(
        0.3, "concentration of a class's shares over the clients", always_shown=True
    )
    balanced: bool = option(
        True, "whether a client that holds its equal part of all samples gets no more, as in public code"
    )
    min_train: Annotated[int, Field(ge=1)] = option(10, "fewest training samples that a client may hold")
    redraws: Annotated[int, Field(ge=1)] = option(1000, "how many splits to draw before giving up on min_train")

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Each class's shares, [C, clients]."""
        counts = np.bincount(samples.labels[~samples.is_test], minlength=samples.num_classes)
        return data.dirichlet_shares(counts, clients, self.alpha, stream, self.balanced)
