"""The contract of partitioners, which assign samples to clients, and functions that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench.base import rng
from fedbench.base.hooks import hook, optional_hook
from fedbench.base.options import option
from fedbench.base.planned_task import PlannedTask
from fedbench.data.samples import Bools, DataError, Ints, Samples

# If m clients are short on average, none is short in about one draw of e^m, so further draws are useless.
HOPELESS = 20


@dataclass(frozen=True)
class Dealt:
    """The client and the role of each sample. A role that is None is drawn later."""

    owner: Ints  # [N] the client; -1: not used
    is_test: Bools  # [N] whether the sample tests its client
    validation: Bools | None = None  # [N] whether it is set aside for selection
    held_out: Bools | None = None  # [clients] which clients never train


@dataclass(frozen=True)
class SplitSource:
    """Base of everything that assigns samples to clients. Partitioners that draw derive from `Partitioner`.

    A frozen dataclass called ``Partitioner`` in a file of ``datasets/partitioners/``; its fields are options.
    """

    citation: ClassVar[str] = "ours"

    @optional_hook
    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Raise ValueError if the options do not fit the task. Called when a sweep is planned, before anything starts.

        `run`: the run's config as in a sweep file, with all defaults, such as ``run["local"]["lr"]``.
        """

    @hook
    def deal(self, samples: Samples, clients: int, seed: int, need: int) -> Dealt:
        """Assign `samples` to `clients` clients, at least `need` training samples and one test sample each.

        A pure function of its arguments that does not read images. Raises DataError.
        """
        raise TypeError(f"{type(self).__module__} must define deal()")


@dataclass(frozen=True)
class Partitioner(SplitSource):
    """Base of partitioners that draw each client's share of each group of samples.

    Most override only `shares`. Training and test samples of a group are assigned by the same shares, so a client's test
    data follow its training distribution.
    """

    min_train: Annotated[int, Field(ge=1)] = option(1, "fewest training samples that a client may hold")
    redraws: Annotated[int, Field(ge=1)] = option(1, "how many splits to draw before giving up on min_train")
    test: Literal["official", "own", "merged"] = option(
        "official",
        "the clients' test samples. official: the dataset's test set, assigned like the training set; own: a share of each "
        "client's training samples, with the official test set for the global model only; merged: training and test set "
        "are merged and each client's samples cut, which is not comparable with the official test set",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = option(
        0.25, "share of a client's samples for testing, if test is own or merged"
    )

    @hook
    def groups(self, samples: Samples) -> Ints:
        """The group of every sample [N], 0..G-1; samples of a group are interchangeable. By default the label."""
        return samples.labels

    @hook
    def shares(self, samples: Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Each client's share of each group, [G, clients]; rows sum to 1. Raises DataError if the split is impossible."""
        raise TypeError(f"{type(self).__module__} must define shares()")

    @hook
    def assign(self, samples: Samples, clients: int, stream: np.random.Generator) -> Ints:
        """The client of every sample [N] (-1: not used). Override this hook for splits that are not made of shares."""
        groups, shares = self.groups(samples), self.shares(samples, clients, stream)
        least = int(groups.max()) + 1
        sums = shares.sum(1) if shares.ndim == 2 else shares
        if shares.shape[1:] != (clients,) or len(shares) < least or (shares < 0).any() or not np.allclose(sums, 1):
            name = type(self).__module__.removeprefix("fedbench_plugin_partitioners_")
            raise DataError(
                f"{name}: shares() must give [groups, clients] = [{least}, {clients}] or more rows, at least 0 and each row "
                f"summing to 1, not {list(shares.shape)} with sums {sums.min():g}..{sums.max():g}. Groups are classes unless "
                "groups() defines others"
            )
        owner = np.full(len(samples.labels), -1, dtype=np.int64)
        parts = [np.flatnonzero(samples.is_test == part) for part in (False, True)]
        sorted_parts = [part[np.argsort(groups[part], kind="stable")] for part in parts]
        starts = [np.searchsorted(groups[part], np.arange(least + 1)) for part in sorted_parts]
        for group, row in enumerate(shares[:least]):
            order = stream.permutation(clients)  # so that rounding does not always favour the same client
            edges = np.minimum(np.concatenate([[0.0], np.cumsum(row[order])]), 1.0)
            edges[-1] = 1.0  # the rows sum to 1 except for rounding
            for part, start in zip(sorted_parts, starts, strict=True):
                members = stream.permutation(part[start[group] : start[group + 1]])
                cuts = np.rint(edges * len(members)).astype(np.int64)
                owner[members] = np.repeat(order, np.diff(cuts))
        return owner

    @hook
    def deal(self, samples: Samples, clients: int, seed: int, need: int) -> Dealt:
        """Repeat `assign` until every client has enough samples, and cut off each client's own test part. Raises DataError."""
        official = self.test == "official"
        counts = int((~samples.is_test).sum()), int(samples.is_test.sum())
        if official and 0 in counts:
            raise DataError(f"a split needs training and test samples, found {counts[0]} and {counts[1]}")
        if self.test == "merged":
            samples = replace(samples, is_test=np.zeros(len(samples.labels), dtype=bool))
        stricter = replace(self, min_train=max(self.min_train, need))
        best = clients + 1, ""
        for draw in range(max(1, self.redraws)):
            owner = stricter.assign(samples, clients, rng.numpy_stream(seed, "partition", draw))
            is_test = samples.is_test
            if not official:
                owner = np.where(is_test, -1, owner)
                take = cut(np.bincount(owner[owner >= 0], minlength=clients), self.test_share)
                is_test = chosen(owner, owner >= 0, take, rng.numpy_stream(seed, "test"))
            short, problem = too_few(owner, is_test, clients, stricter.min_train)
            if not short:
                return Dealt(owner, is_test)
            best = min(best, (short, problem))
            if draw >= 2 and best[0] > HOPELESS:
                break
        advice = "; test: own would take test samples from each client's training samples" if official else ""
        raise DataError(
            f"impossible split: {best[1]}, in the best of {draw + 1} draws of {self!r} over {counts[0]} training and "
            f"{counts[1]} test samples{advice}"
        )


def too_few(owner: Ints, is_test: Bools, clients: int, need: int) -> tuple[int, str]:
    """The number of clients with fewer than `need` training samples or no test sample, and a sentence about them."""
    train, test = (np.bincount(owner[(owner >= 0) & (is_test == part)], minlength=clients) for part in (False, True))
    short = np.flatnonzero((train < need) | (test < 1))
    k = int(short[0]) if len(short) else 0
    return len(short), (
        f"{len(short)} of {clients} clients are left short, for example client {k} with {train[k]} training and {test[k]} "
        f"test samples (at least {need} and 1 are needed)"
    )


def cut(sizes: Ints, share: float) -> Ints:
    """How many samples a cut of `share` takes from clients with `sizes` [clients] samples: at least one, and never all."""
    taken: Ints = np.clip(np.rint(share * sizes).astype(np.int64), 1, np.maximum(sizes - 1, 0))
    return taken


def chosen(owner: Ints, among: Bools, take: Ints, stream: np.random.Generator) -> Bools:
    """A mask [N] of ``take[k]`` random samples of every client k among the samples `among` [N]."""
    shuffled = stream.permutation(np.flatnonzero(among))
    shuffled = shuffled[np.argsort(owner[shuffled], kind="stable")]  # by client, shuffled within a client
    owners = owner[shuffled]
    sizes = np.bincount(owners, minlength=len(take))
    rank = np.arange(len(shuffled)) - (np.cumsum(sizes) - sizes)[owners]
    mask = np.zeros(len(owner), dtype=bool)
    mask[shuffled[rank < take[owners]]] = True
    return mask


def dirichlet_shares(
    counts: Ints, clients: int, alpha: float, stream: np.random.Generator, balanced: bool = True
) -> NDArray[np.float64]:
    """Each group's shares from a symmetric Dirichlet over the clients, [G, clients]; `counts` [G]: the groups' sizes.

    `balanced`: a client that already holds its equal part of all samples gets no more. Setting its share to 0 and scaling
    the others up is the same as a draw from the Dirichlet over the others, which is done here. Groups are dealt in random
    order, so that the classes that end up with few clients are not always the last ones.
    """
    shares = np.zeros((len(counts), clients))
    held = np.zeros(clients)
    for group in stream.permutation(len(counts)):
        takers = np.flatnonzero(held < counts.sum() / clients) if balanced else np.arange(clients)
        if not len(takers):  # all clients have their part; only empty groups and rounding are left
            takers = np.arange(clients)
        shares[group, takers] = stream.dirichlet(np.full(len(takers), alpha))
        held += shares[group] * counts[group]
    return shares


def level_owners(classes: int, clients: int, each: int, stream: np.random.Generator) -> Bools:
    """Which client owns which class, [C, clients]: `each` per client; the numbers of owners differ by at most one.

    Clients take the classes with the most free places, which keeps the places even: every client finds `each` classes with a
    free place. Raises DataError if there are too few classes, or too few clients for them.
    """
    if each > classes:
        raise DataError(f"impossible split: classes_per_client is {each}, but the dataset has {classes} classes")
    if each * clients < classes:
        raise DataError(
            f"impossible split: {clients} clients with {each} classes each cannot own all {classes} classes; "
            f"raise classes_per_client to {-(-classes // clients)} or clients.number to {-(-classes // each)}"
        )
    places = np.zeros(classes, dtype=np.int64)  # beyond those that all classes have alike
    places[stream.permutation(classes)[: each * clients % classes]] += 1
    owned = np.zeros((classes, clients), dtype=bool)
    for k in range(clients):
        taken = np.lexsort((stream.random(classes), -places))[:each]
        owned[taken, k] = True
        places[taken] -= 1
    return owned
