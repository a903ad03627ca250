"""The data contract: what a dataset holds, how a partitioner deals it out, and the batches that clients train on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench import rng
from fedbench.method import option

Ints = NDArray[np.int64]


class DataError(ValueError):
    """Data that cannot be used: says which file or split, what was expected and what was found."""


@dataclass(frozen=True)
class Samples:
    """All images of a dataset with their labels; N images of one size.

    ``images`` uint8 [N, H, W, 3] (a memory map is welcome), ``labels`` int64 [N] in 0..C-1, ``is_test`` bool [N];
    optional ``domain`` and ``user`` int64 [N].
    """

    images: NDArray[np.uint8]
    labels: Ints
    is_test: NDArray[np.bool_]
    domain: Ints | None = None
    user: Ints | None = None
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.labels)
        for name in ("labels", "domain", "user"):
            value = getattr(self, name)
            if value is not None and value.dtype != np.int64:
                raise DataError(f"{name} must be int64, not {value.dtype}")
        if self.is_test.dtype != np.bool_:
            raise DataError(f"is_test must be bool, not {self.is_test.dtype}")
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != np.uint8:
            raise DataError(f"images must be uint8 [N, H, W, 3], not {self.images.dtype} {list(self.images.shape)}")
        for name in ("images", "is_test", "domain", "user"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise DataError(f"{name} has {len(value)} rows, labels has {count}")
        if count == 0:
            raise DataError("the dataset is empty")
        if self.labels.min() < 0 or (self.class_names and self.labels.max() >= len(self.class_names)):
            raise DataError(
                f"labels must be in 0..{len(self.class_names) - 1}, found {self.labels.min()}..{self.labels.max()}"
            )

    @property
    def num_classes(self) -> int:
        """C: the number of classes, from the names where there are some."""
        return len(self.class_names) or int(self.labels.max()) + 1


@dataclass(frozen=True)
class Dataset:
    """Base of all datasets: a frozen dataclass called ``Dataset`` in a file of ``datasets/``; its fields are options.

    A field annotated ``Path`` names a file or folder of the user; it enters a run's identity by content, not by name.
    """

    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""

    def load(self, root: Path) -> Samples:
        """Read the samples; downloads and caches go below `root`. Raises DataError."""
        raise TypeError(f"{type(self).__module__} must define load()")


@dataclass(frozen=True)
class Partitioner:
    """Base of all partitioners: says which share of each group of samples each client gets.

    A partitioner is a frozen dataclass called ``Partitioner`` in a file of ``datasets/partitioners/``. It usually
    defines `shares` alone. Train and test samples of a group are dealt by the same shares, so a client's test data
    follow its train distribution.
    """

    citation: ClassVar[str] = "ours"
    min_train: int = option(1, "fewest training samples that a client may hold")
    redraws: int = option(1, "how many splits to draw before giving up on min_train")

    def groups(self, samples: Samples) -> Ints:
        """The group of every sample [N], 0..G-1; samples of one group are interchangeable. Here: the label."""
        return samples.labels

    def shares(self, samples: Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """The share of group g that client k gets, [G, clients], rows sum to 1. Raises DataError where impossible."""
        raise TypeError(f"{type(self).__module__} must define shares()")

    def assign(self, samples: Samples, clients: int, stream: np.random.Generator) -> Ints:
        """The client of every sample [N] (-1: nobody's). Override for splits that are not made of shares."""
        groups, shares = self.groups(samples), self.shares(samples, clients, stream)
        least = int(groups.max()) + 1
        sums = shares.sum(1) if shares.ndim == 2 else shares
        if shares.shape[1:] != (clients,) or len(shares) < least or (shares < 0).any() or not np.allclose(sums, 1):
            raise DataError(
                f"{type(self).__module__}: shares() must give at least [{least}, {clients}] shares, rows summing to 1, "
                f"not {list(shares.shape)} with sums {sums.min():g}..{sums.max():g}"
            )
        owner = np.full(len(samples.labels), -1, dtype=np.int64)
        parts = [np.flatnonzero(samples.is_test == part) for part in (False, True)]
        sorted_parts = [part[np.argsort(groups[part], kind="stable")] for part in parts]
        starts = [np.searchsorted(groups[part], np.arange(least + 1)) for part in sorted_parts]
        for group, row in enumerate(shares[:least]):
            order = stream.permutation(clients)  # who gets the odd sample is drawn, not always the same client
            edges = np.minimum(np.concatenate([[0.0], np.cumsum(row[order])]), 1.0)
            edges[-1] = 1.0  # the rows sum to 1 but for rounding
            for part, start in zip(sorted_parts, starts, strict=True):
                members = stream.permutation(part[start[group] : start[group + 1]])
                cuts = np.rint(edges * len(members)).astype(np.int64)
                owner[members] = np.repeat(order, np.diff(cuts))
        return owner


def dirichlet_shares(
    counts: Ints, clients: int, alpha: float, stream: np.random.Generator, balanced: bool = True
) -> NDArray[np.float64]:
    """Each group's shares from a symmetric Dirichlet over the clients, [G, clients]; `counts` [G]: the groups' sizes.

    `balanced`: a client that already holds its equal part of all samples gets no more. Setting its share to 0 and
    scaling the others up is the same as drawing from the Dirichlet of the others, which is what happens here. Groups
    take their turns in random order, so that it is not always the last classes that end up with few clients.
    """
    shares = np.zeros((len(counts), clients))
    held = np.zeros(clients)
    for group in stream.permutation(len(counts)):
        takers = np.flatnonzero(held < counts.sum() / clients) if balanced else np.arange(clients)
        if not len(takers):  # all have their part: what is left is empty groups and rounding
            takers = np.arange(clients)
        shares[group, takers] = stream.dirichlet(np.full(len(takers), alpha))
        held += shares[group] * counts[group]
    return shares


@dataclass(frozen=True)
class Split:
    """Who holds what: sample indices per client, and which clients never train."""

    train: tuple[Ints, ...]
    validation: tuple[Ints, ...]
    test: tuple[Ints, ...]
    held_out: NDArray[np.bool_]  # [clients]

    @property
    def hash(self) -> str:
        """16 hex digits that change whenever any client's train, validation or test set or role does."""
        digest = hashlib.sha256(np.packbits(self.held_out).tobytes())
        for part in (self.train, self.validation, self.test):
            for indices in part:
                digest.update(np.int64(len(indices)).tobytes() + indices.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def class_counts(self, labels: Ints, num_classes: int) -> Ints:
        """Label histogram of each client's training part, [clients, C]."""
        return np.stack([np.bincount(labels[part], minlength=num_classes) for part in self.train])


def split(
    samples: Samples,
    partitioner: Partitioner,
    clients: int,
    held_out: float = 0.0,
    validation: float = 0.0,
    seed: int = 0,
) -> Split:
    """Deal `samples` to `clients` clients; a pure function of its arguments, independent of any method.

    `held_out` is the share of clients that never train (a whole number from 1 on counts clients), `validation` the
    share of each client's training samples set aside for selection (at least one where a client can spare it).
    Raises DataError, with the numbers, where a client would be left without training or test samples.
    """
    available = int((~samples.is_test).sum()), int(samples.is_test.sum())
    if 0 in available:
        raise DataError(f"a split needs training and test samples, found {available[0]} and {available[1]}")
    problem = ""
    for draw in range(max(1, partitioner.redraws)):
        owner = partitioner.assign(samples, clients, rng.numpy_stream(seed, "partition", draw))
        sizes = {p: np.bincount(owner[(owner >= 0) & (samples.is_test == p)], minlength=clients) for p in (False, True)}
        need = max(partitioner.min_train, 2 if validation else 1)
        short = np.flatnonzero((sizes[False] < need) | (sizes[True] < 1))
        if not len(short):
            break
        k = int(short[0])
        problem = (
            f"{len(short)} of {clients} clients are left short, for example client {k} with {sizes[False][k]} training "
            f"and {sizes[True][k]} test samples (at least {need} and 1 are needed), after {draw + 1} draws of "
            f"{partitioner!r} over {available[0]} training and {available[1]} test samples"
        )
    else:
        raise DataError(f"impossible split: {problem}")

    stream = rng.numpy_stream(seed, "validation")
    train, val, test = [], [], []
    for k in range(clients):
        mine = stream.permutation(np.flatnonzero((owner == k) & ~samples.is_test))
        cut = min(max(1, round(validation * len(mine))), len(mine) - 1) if validation else 0
        val.append(np.sort(mine[:cut]))
        train.append(np.sort(mine[cut:]))
        test.append(np.flatnonzero((owner == k) & samples.is_test))
    out = np.zeros(clients, dtype=bool)
    count = int(held_out) if held_out >= 1 else round(held_out * clients)
    if count >= clients:
        raise DataError(f"{count} of {clients} clients held out: nobody is left to train")
    out[rng.numpy_stream(seed, "held_out").permutation(clients)[:count]] = True
    return Split(tuple(train), tuple(val), tuple(test), out)


@dataclass(frozen=True)
class Batches:
    """One round's local batches of K clients, rectangular: S steps x K clients x B samples; weight 0 marks padding.

    Clients stand in descending order of their number of steps, so the clients still at work in step s are the first
    ``active[s]`` ones.
    """

    clients: Ints  # [K] which client each row is
    index: Ints  # [S, K, B] sample indices; padding repeats a sample of the same client
    weight: NDArray[np.float32]  # [S, K, B]
    flip: NDArray[np.bool_]  # [S, K, B] draws for the augmentation, always made so that streams never shift
    shift: NDArray[np.float32]  # [S, K, B, 2] in [-1, 1)
    active: tuple[int, ...]  # [S]


def batches(
    train: Sequence[Ints], clients: Ints, batch_size: int, epochs: int, seed: int, *stream: int | str
) -> Batches:
    """Shuffle each client's samples `epochs` times and cut batches.

    Client k's draws are named by (`seed`, "batches", `stream`, k), so its batches do not depend on who else is in the
    cohort.
    """
    steps = np.array([epochs * -(-len(train[k]) // batch_size) for k in clients])
    order = np.argsort(-steps, kind="stable")
    clients, steps = np.asarray(clients)[order], steps[order]
    total, count = int(steps.max(initial=0)), len(clients)
    index = np.zeros((total, count, batch_size), dtype=np.int64)
    weight = np.zeros((total, count, batch_size), dtype=np.float32)
    flip = np.zeros((total, count, batch_size), dtype=bool)
    shift = np.zeros((total, count, batch_size, 2), dtype=np.float32)
    for row, k in enumerate(clients):
        draw = rng.numpy_stream(seed, "batches", *stream, int(k))
        mine, per_epoch = train[k], int(steps[row]) // epochs
        for epoch in range(epochs):
            order_k = np.resize(draw.permutation(mine), per_epoch * batch_size)
            here = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
            index[here, row] = order_k.reshape(per_epoch, batch_size)
            weight[here, row] = (np.arange(per_epoch * batch_size) < len(mine)).reshape(per_epoch, batch_size)
            flip[here, row] = draw.random((per_epoch, batch_size)) < 0.5
            shift[here, row] = draw.random((per_epoch, batch_size, 2)) * 2 - 1
        index[int(steps[row]) :, row] = mine[0]
    active = tuple(int((steps > s).sum()) for s in range(total))
    return Batches(clients, index, weight, flip, shift, active)
