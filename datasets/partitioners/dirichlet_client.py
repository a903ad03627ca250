"""Dirichlet label skew by client: each client draws its own class distribution, and all clients are equally large.

Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"
(arXiv:1909.06335): q_k from Dir(alpha * p), where p is the class distribution of the whole dataset; samples are drawn
by q_k without replacement (paper), and where a class has run out q_k is renormalised over the others (ours, as usual in
public ports). All clients draw at once, and where they ask for more of a class than there is, chance decides who gets
it: so the leftovers do not all go to the client with the highest number (ours). Test samples follow by the same shares
of each class (ours).

Mind the scale: `alpha` is spread over the classes, so with C equally frequent classes this is a symmetric Dirichlet
with alpha / C for each class.
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
    """Small `alpha`: about one class for each client; large `alpha`: the dataset's class distribution."""

    citation: ClassVar[str] = "Hsu et al. 2019, arXiv:1909.06335"
    alpha: Annotated[float, Field(gt=0)] = option(
        10.0, "concentration of a client's classes around the dataset's", always_shown=True
    )
    redraws: Annotated[int, Field(ge=1)] = option(100, "how many splits to draw before giving up on min_train")

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """What part of each class's training samples each client drew, [C, clients]."""
        counts = np.bincount(samples.labels[~samples.is_test], minlength=samples.num_classes)
        shares = np.full((len(counts), clients), 1 / clients)  # a class without training samples: its test samples
        present = np.flatnonzero(counts)
        drawn = _draw(counts[present], clients, self.alpha, stream)
        shares[present] = drawn.T / counts[present, None]
        return shares


def _draw(counts: data.Ints, clients: int, alpha: float, stream: np.random.Generator) -> data.Ints:
    """How many samples of each class each client draws, [clients, C]; all are dealt, sizes differ by at most one."""
    left, total = counts.copy(), int(counts.sum())
    wish = stream.dirichlet(alpha * left / total, size=clients)
    need = total // clients + (stream.permutation(clients) < total % clients)
    drawn = np.zeros((clients, len(counts)), dtype=np.int64)
    while left.any():  # each turn deals everything or empties a class, so there are at most C turns
        short = np.flatnonzero(need)
        odds = wish[short] * (left > 0)
        odds[odds.sum(1) == 0] = left  # a client whose classes have all run out takes what there is
        asked = stream.multinomial(need[short], odds / odds.sum(1, keepdims=True))
        for c in np.flatnonzero(asked.sum(0) > left):
            asked[:, c] = stream.multivariate_hypergeometric(asked[:, c], left[c])
        drawn[short] += asked
        need[short] -= asked.sum(1)
        left -= asked.sum(0)
    return drawn
