"""Pathological label skew: each client holds samples of a few classes only.

Deng, Thrampoulidis and Li 2024, "Unlocking the Potential of Prompt-Tuning in Bridging Generalized and Personalized
Federated Learning" (SGPT, arXiv:2310.18285): s classes per client, every class goes to s * clients / C of them, whose
shares are uniform in .4 to .6 and normalised; train and test samples by the same shares (code). Clients take, one after
the other, the classes with the most free places; ties are drawn (code). If s * clients is no multiple of C, or C no multiple
of s, the code stops; here the numbers of owners of the classes then differ by one (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench import data
from fedbench.data import option

LOW, HIGH = 0.4, 0.6  # an owner's share before normalising


@dataclass(frozen=True)
class Partitioner(data.Partitioner):
    """Exactly `classes_per_client` classes for each client."""

    citation: ClassVar[str] = "Deng et al. 2024 (SGPT), arXiv:2310.18285"
    classes_per_client: Annotated[int, Field(ge=1)] = option(
        10, "how many classes each client holds", always_shown=True
    )

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Shares of each class's owners, [C, clients]. Raises DataError where classes or samples are too few."""
        classes, each = samples.num_classes, self.classes_per_client
        owned = data.level_owners(classes, clients, each, stream)
        counts = np.bincount(samples.labels[~samples.is_test], minlength=classes)
        owners = owned.sum(1)
        # An owner's share is at least LOW / (LOW + HIGH * others); with this many samples rounding leaves it one.
        need = np.ceil(1 + HIGH / LOW * (owners - 1)).astype(np.int64)
        for c in np.flatnonzero(counts < need)[:1]:
            raise data.DataError(
                f"impossible split: class {c} has {counts[c]} training samples for its {owners[c]} owners, who need "
                f"{need[c]} to be sure of one each; take fewer clients or fewer classes_per_client"
            )
        weights = np.where(owned, stream.uniform(LOW, HIGH, owned.shape), 0.0)
        return np.asarray(weights / weights.sum(1, keepdims=True))
