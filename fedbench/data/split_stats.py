"""Statistics of a split: sizes of clients, numbers of classes, and distances between each client and all clients together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from fedbench.base import rng
from fedbench.data.samples import Bools, Ints, Samples
from fedbench.data.split import Split

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SplitStats:
    """Statistics of K clients and C classes. Distances are between class distributions; 0: equal, 1: no class in common."""

    counts: Ints  # [K, C] training samples
    sizes: tuple[Ints, Ints, Ints]  # [K] training, validation, test samples
    held_out: Bools  # [K]
    variation: Floats  # [K] total variation between the training samples of a client and of all clients
    by_chance: Floats  # [K] the same for equally many random samples, since small clients always differ
    shannon: Floats  # [K] Jensen-Shannon divergence of the same distributions, in bits
    test_variation: Floats  # [K] total variation between a client's training and test samples
    unused: int  # samples of the dataset that no client holds

    @property
    def classes(self) -> Ints:
        """The number of classes that each client trains on, [K]."""
        number: Ints = (self.counts > 0).sum(1)
        return number

    @classmethod
    def of(cls, split: Split, samples: Samples) -> SplitStats:
        """The statistics of `split`, a split of `samples`."""
        counts = split.class_counts(samples.labels, samples.num_classes)
        total = counts.sum(0)
        clients, whole = _shares(counts), _shares(total[None])
        drawn = rng.numpy_stream("portrait").multinomial(split.train.sizes, whole[0])
        test = _shares(split.test.class_counts(samples.labels, samples.num_classes))
        middle = (clients + whole) / 2
        parts = (split.train, split.validation, split.test)
        return cls(
            counts=counts,
            sizes=(parts[0].sizes, parts[1].sizes, parts[2].sizes),
            held_out=split.held_out,
            variation=_variation(clients, whole),
            by_chance=_variation(_shares(drawn), whole),
            shannon=(rel_entr(clients, middle).sum(1) + rel_entr(whole, middle).sum(1)) / (2 * np.log(2)),
            test_variation=_variation(clients, test),
            unused=len(samples.labels) - sum(len(part.indices) for part in parts),
        )


def _shares(counts: Ints) -> Floats:
    """Counts [K, C] as distributions over classes."""
    shares: Floats = counts / counts.sum(1, keepdims=True)
    return shares


def _variation(first: Floats, second: Floats) -> Floats:
    """The total variation distance of class distributions [K, C]: half the sum of absolute differences, [K]."""
    distance: Floats = np.abs(first - second).sum(1) / 2
    return distance
