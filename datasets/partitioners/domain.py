"""Feature shift: every client has samples of one domain, which it may share with other clients.

Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization" (arXiv:2102.07623): one
client per domain (paper). More clients than domains are spread evenly over the domains. They share the samples of their
domain equally or, with `alpha`, class by class as in dirichlet.py: feature shift and label shift together (ours).
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
    """Each client has one domain: an equal part of it, or Dirichlet shares of each class."""

    citation: ClassVar[str] = "Li et al. 2021 (FedBN), arXiv:2102.07623"
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = option(
        None, "concentration of a class's shares over the clients of a domain; equal parts if not given"
    )
    redraws: Annotated[int, Field(ge=1)] = option(100, "how many splits to draw before giving up on min_train")

    def groups(self, samples: data.Samples) -> data.Ints:
        """The domain of every sample, or with `alpha` its domain and class. Raises DataError without domains."""
        domain, _ = _domains(samples)
        return domain if self.alpha is None else domain * samples.num_classes + samples.labels

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Shares of the clients that have the group's domain, [G, clients]. Raises DataError."""
        _, domains = _domains(samples)
        if clients < domains:
            raise data.DataError(
                f"impossible split: {clients} clients leave some of the {domains} domains empty; take {domains} or more"
            )
        # Which clients share a domain is drawn, and so is which domains get one client more than others.
        homes = stream.permutation(stream.permutation(domains)[np.arange(clients) % domains])
        per_domain = 1 if self.alpha is None else samples.num_classes
        counts = np.bincount(self.groups(samples)[~samples.is_test], minlength=domains * per_domain)
        shares = np.zeros((domains * per_domain, clients))
        for d in range(domains):
            here, rows = np.flatnonzero(homes == d), slice(d * per_domain, (d + 1) * per_domain)
            if self.alpha is None:
                shares[rows, here] = 1 / len(here)
            else:
                shares[rows, here] = data.dirichlet_shares(counts[rows], len(here), self.alpha, stream)
        return shares


def _domains(samples: data.Samples) -> tuple[data.Ints, int]:
    """The domain of every sample as 0..D-1, and D."""
    if samples.domain is None:
        raise data.DataError("impossible split: the dataset has no domains, which the domain partitioner needs")
    names, domain = np.unique(samples.domain, return_inverse=True)
    return domain.astype(np.int64), len(names)
