"""Dirichlet label skew by client: each client draws its own class distribution, and all clients are equally large.

Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"
(arXiv:1909.06335): q_k from Dir(alpha * p), where p is the class distribution of the whole dataset; client k draws its
samples by q_k without replacement (paper). When a class runs out, q_k is renormalised over the other classes (ours, as is
usual in public ports). Test samples follow by the same shares of each class (ours).

`order` says who draws when. With ``sequential`` clients draw one after the other (public ports): the last clients get what
the others left, and early ones get exactly their q_k. With ``simultaneous``, the default, all clients draw at once, and
chance decides who gets a class of which they ask for more than there is (ours): no client is special, but every client then
replaces some of its own classes by those left over, so clients are more alike. The mean entropy of a client's class
distribution, in bits, 100 clients with 50,000 samples, over 5 seeds:

===========  =======  ============  ==========  =================  ==============
classes      alpha    simultaneous  sequential  mean of q_k alone  all the same
===========  =======  ============  ==========  =================  ==============
10           0.1      0.68          0.21        0.20               3.32
10           1        1.42          1.13        1.22               3.32
10           10       2.81          2.69        2.78               3.32
100          0.1      1.07          0.40        0.22               6.64
100          1        2.01          1.44        1.42               6.64
100          10       4.07          3.77        4.01               6.64
===========  =======  ============  ==========  =================  ==============

Compare with published numbers by ``sequential``. Mind the scale: `alpha` is spread over the classes, so with C equally
frequent classes this is a symmetric Dirichlet with alpha / C for each class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench import data
from fedbench.data import option


@dataclass(frozen=True)
class Partitioner(data.Partitioner):
    """Small `alpha`: about one class for each client; large `alpha`: the dataset's class distribution."""

    citation: ClassVar[str] = "Hsu et al. 2019, arXiv:1909.06335"
    alpha: Annotated[float, Field(gt=0, le=1e6)] = option(
        10.0, "concentration of a client's class distribution around that of the dataset", always_shown=True
    )
    order: Literal["simultaneous", "sequential"] = option(
        "simultaneous",
        "sequential: clients draw one after the other, as in public ports; simultaneous: all draw at once, so that no "
        "client gets only what is left over",
    )
    redraws: Annotated[int, Field(ge=1)] = option(100, "how many splits to draw before giving up on min_train")

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """The part of each class's training samples that each client drew, [C, clients]."""
        counts = np.bincount(samples.labels[~samples.is_test], minlength=samples.num_classes)
        shares = np.full((len(counts), clients), 1 / clients)  # of the test samples of a class without training samples
        present = np.flatnonzero(counts)
        wished = stream.dirichlet(self.alpha * counts[present] / counts.sum(), size=clients)
        sizes = counts.sum() // clients + (stream.permutation(clients) < counts.sum() % clients)
        draw = _draw_in_turn if self.order == "sequential" else _draw_at_once
        shares[present] = draw(counts[present], wished, sizes, stream).T / counts[present, None]
        return shares


def _draw_at_once(
    counts: data.Ints, wished: NDArray[np.float64], sizes: data.Ints, stream: np.random.Generator
) -> data.Ints:
    """How many samples of each class each client draws, [clients, C]: `sizes` [clients] in all, by `wished` [clients, C]."""
    left, need = counts.copy(), sizes.copy()
    drawn = np.zeros(wished.shape, dtype=np.int64)
    while left.any():  # each turn hands out everything or empties a class, so there are at most C turns
        short = np.flatnonzero(need)
        drawn_now = stream.multinomial(need[short], _odds(wished[short], left))
        for c in np.flatnonzero(drawn_now.sum(0) > left):
            drawn_now[:, c] = stream.multivariate_hypergeometric(drawn_now[:, c], left[c])
        drawn[short] += drawn_now
        need[short] -= drawn_now.sum(1)
        left -= drawn_now.sum(0)
    return drawn


def _draw_in_turn(
    counts: data.Ints, wished: NDArray[np.float64], sizes: data.Ints, stream: np.random.Generator
) -> data.Ints:
    """The same for clients that draw one after the other, by number."""
    left = counts.copy()
    drawn = np.zeros(wished.shape, dtype=np.int64)
    for k, need in enumerate(sizes.tolist()):
        while need:  # a sample of an exhausted class is drawn again, which renormalises over the others
            taken = np.minimum(stream.multinomial(need, _odds(wished[k : k + 1], left)[0]), left)
            drawn[k] += taken
            left -= taken
            need -= int(taken.sum())
    return drawn


def _odds(wished: NDArray[np.float64], left: data.Ints) -> NDArray[np.float64]:
    """Each client's distribution over the classes that are left, [clients, C]; one whose classes ran out takes any."""
    odds = wished * (left > 0)
    odds[odds.sum(1) == 0] = left
    result: NDArray[np.float64] = odds / odds.sum(1, keepdims=True)
    return result
