"""A split: the training, validation and test samples of each client, and which clients never train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbench.base import rng
from fedbench.data.partition import SplitSource, chosen, cut
from fedbench.data.samples import Bools, DataError, Ints, Samples


@dataclass(frozen=True, eq=False)
class Parts(Sequence[Ints]):
    """The sample indices of all clients, concatenated in one array, so that a million clients do not need a million arrays."""

    indices: Ints
    edges: Ints  # [clients + 1] client k has indices[edges[k] : edges[k + 1]]

    @classmethod
    def of(cls, parts: Iterable[Ints]) -> Parts:
        """Make parts from one array of indices per client."""
        arrays = [np.asarray(part, dtype=np.int64) for part in parts]
        return cls(np.concatenate([*arrays, np.zeros(0, np.int64)]), np.cumsum([0, *map(len, arrays)]))

    @classmethod
    def where(cls, owner: Ints, mask: Bools, clients: int) -> Parts:
        """The samples in `mask` [N] by their `owner` [N], ascending within a client."""
        index = np.flatnonzero(mask)
        sizes = np.bincount(owner[index], minlength=clients)
        return cls(index[np.argsort(owner[index], kind="stable")], np.concatenate([[0], np.cumsum(sizes)]))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, k: int) -> Ints:  # type: ignore[override]
        if not 0 <= k < len(self):
            raise IndexError(f"client {k} of {len(self)}")
        return self.indices[self.edges[k] : self.edges[k + 1]]

    @property
    def sizes(self) -> Ints:
        """The number of samples of each client, [clients]."""
        return np.diff(self.edges)

    @property
    def owners(self) -> Ints:
        """The client of each of `indices`, [samples]."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def class_counts(self, labels: Ints, num_classes: int) -> Ints:
        """The label histogram of each client's samples, [clients, C]."""
        flat = np.bincount(self.owners * num_classes + labels[self.indices], minlength=len(self) * num_classes)
        return flat.reshape(len(self), num_classes)


@dataclass(frozen=True)
class Split:
    """The training, validation and test samples of each client, and which clients never train."""

    train: Parts
    validation: Parts
    test: Parts
    held_out: NDArray[np.bool_]  # [clients]

    @property
    def hash(self) -> str:
        """16 hex digits that change with any client's training, validation or test set, and with the held-out clients."""
        digest = hashlib.sha256(np.packbits(self.held_out).tobytes())
        for part in (self.train, self.validation, self.test):  # each client's number of samples, then the samples
            digest.update(np.insert(part.indices, part.edges[:-1], part.sizes).astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def class_counts(self, labels: Ints, num_classes: int) -> Ints:
        """The label histogram of each client's training samples, [clients, C]."""
        return self.train.class_counts(labels, num_classes)

    def global_test(self, samples: Samples) -> Ints:
        """The samples that test the global model, ascending: the global test set of the dataset.

        All clients' test samples if there is no such set, or if clients train on a part of it (training and test set merged).
        """
        is_trained = np.zeros(len(samples.labels), dtype=bool)
        is_trained[self.train.indices] = is_trained[self.validation.indices] = True
        official = samples.global_test
        return official if len(official) and not is_trained[official].any() else np.sort(self.test.indices)


def split(
    samples: Samples,
    source: SplitSource,
    clients: int,
    held_out: float = 0.0,
    validation: float = 0.0,
    seed: int = 0,
    shots: int | None = None,
    novel: int = 0,
) -> Split:
    """Assign `samples` to `clients` clients: a pure function of its arguments, independent of any method.

    `held_out` is the share of clients that never train (a number of clients if it is 1 or more), `validation` the share of
    each client's training samples set aside for selection, at least one if the client has two or more. `shots` is the most
    training samples that a client keeps of each class. The last `novel` classes are only tested.
    Raises DataError, with the numbers, if a client would be left without training or test samples.
    """
    dealt = source.deal(samples, clients, seed, need=2 if validation else 1)
    owner, train = dealt.owner, (dealt.owner >= 0) & ~dealt.is_test
    validating = dealt.validation
    if validating is None:
        take = cut(np.bincount(owner[train]), validation) if validation else np.zeros(clients, int)
        validating = chosen(owner, train, take, rng.numpy_stream(seed, "validation"))
    count = int(held_out) if held_out >= 1 else round(held_out * clients)
    if count >= clients:
        raise DataError(f"{count} of {clients} clients are held out: none is left to train")
    never_trains = dealt.held_out
    if never_trains is None:
        never_trains = np.zeros(clients, dtype=bool)
        never_trains[rng.numpy_stream(seed, "held_out").permutation(clients)[:count]] = True
    elif never_trains.sum() != count:
        raise DataError(
            f"clients.held_out asks for {count} clients, but the split itself holds {never_trains.sum()} out; "
            f"set clients.held_out to {never_trains.sum()}"
        )
    if novel:
        is_base = samples.labels < samples.num_classes - novel
        train, validating = train & is_base, validating & is_base
    train = train & ~validating
    if shots is not None:
        train = few(owner * samples.num_classes + samples.labels, train, shots, rng.numpy_stream(seed, "shots"))
    if novel and (empty := np.flatnonzero(np.bincount(owner[train], minlength=clients) == 0)).size:
        raise DataError(f"client {empty[0]} has no training sample of the {samples.num_classes - novel} base classes")
    return Split(
        train=Parts.where(owner, train, clients),
        validation=Parts.where(owner, validating, clients),
        test=Parts.where(owner, (owner >= 0) & dealt.is_test, clients),
        held_out=never_trains,
    )


def few(group: Ints, mask: Bools, most: int, draw: np.random.Generator) -> Bools:
    """The samples in `mask` [N], but of each `group` [N] at most `most`, drawn at random."""
    index = draw.permutation(np.flatnonzero(mask))
    index = index[np.argsort(group[index], kind="stable")]
    _, first, count = np.unique(group[index], return_index=True, return_counts=True)
    kept = np.zeros(len(mask), dtype=bool)
    kept[index[np.arange(len(index)) - np.repeat(first, count) < most]] = True
    return kept
