"""Checks of datasets and partitioners."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedbench.contract import ContractError, check
from fedbench.data import Dataset, Extent, Partitioner, Samples, Split, split

CLIENTS, CLASSES, DOMAINS, USERS = 6, 5, 3, 30


@dataclass(frozen=True)
class OnDisk:
    """A dataset, and the folder of its downloads and caches."""

    dataset: Dataset
    root: Path

    @cached_property
    def samples(self) -> Samples:
        """The samples, loaded once for all checks."""
        return self.dataset.load(self.root)


@check("dataset")
def samples_are_complete(case: OnDisk) -> None:
    """load() returns training and test images, domains from 0, users from -1 (no user), and distinct class names."""
    samples = case.samples
    if not isinstance(samples, Samples):
        raise ContractError("load()", "Samples(images, labels, is_test, ...)", type(samples).__name__)
    test, count = int(samples.is_test.sum()), len(samples.labels)
    if not 0 < test < count:
        raise ContractError("load(), is_test", "training and test samples", f"{test} of {count} for testing")
    for name, least, names in (("domain", 0, samples.domain_names), ("user", -1, ())):
        column = getattr(samples, name)
        if column is not None and (column.min() < least or (names and column.max() >= len(names))):
            raise ContractError(
                f"load(), {name}", f"{least}..{len(names) - 1 if names else '...'}", f"{column.min()}..{column.max()}"
            )
    for label, names in (("class_names", samples.class_names), ("domain_names", samples.domain_names)):
        if len(set(names)) != len(names):
            raise ContractError(f"load(), {label}", "distinct names", "a name twice")
    missing = set(range(samples.num_classes)) - set(np.unique(samples.labels[~samples.is_test]).tolist())
    if not samples.class_names and missing:
        raise ContractError("load(), labels", "training samples of every class", f"none of class {min(missing)}")


@check("dataset")
def loading_again_gives_the_same(case: OnDisk) -> None:
    """load() returns the same samples in the same order at each call."""
    again = case.dataset.load(case.root)
    for column in dataclasses.fields(Samples):
        first, second = getattr(case.samples, column.name), getattr(again, column.name)
        if not (np.array_equal(first, second) if isinstance(first, np.ndarray) else first == second):
            raise ContractError(f"load(), {column.name}", "the same at each call", "a difference")


@check("dataset")
def the_extent_equals_the_loaded_samples(case: OnDisk) -> None:
    """extent(), if the dataset defines it, counts what load() returns."""
    if type(case.dataset).extent is not Dataset.extent:
        loaded, extent = Extent.of(case.samples), case.dataset.extent(case.root)
        if extent != loaded:
            raise ContractError("extent()", _counts(loaded), _counts(extent))


def _counts(extent: Any) -> str:
    """An extent in a line, without the labels that it may hold."""
    if not isinstance(extent, Extent):
        return repr(extent)
    return f"Extent(train={extent.train}, test={extent.test}, classes={extent.classes})"


def example_samples() -> Samples:
    """Samples to partition: 40 for training and 20 for testing of each of five classes, of three domains and 30 users."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 60)[draw.permutation(60 * CLASSES)]
    is_test = np.zeros(len(labels), dtype=bool)
    for c in range(CLASSES):
        is_test[np.flatnonzero(labels == c)[:20]] = True
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    user = draw.integers(0, USERS, len(labels))
    names = tuple(f"class {c}" for c in range(CLASSES)), tuple(f"domain {d}" for d in range(DOMAINS))
    return Samples(images, labels, is_test, user % DOMAINS, user, *names)


def partitioned(partitioner: Partitioner, seed: int = 0) -> Split:
    """`example_samples` dealt to six clients. Raises DataError."""
    return split(example_samples(), partitioner, CLIENTS, held_out=1, validation=0.1, seed=seed)


@check("partition")
def a_split_is_sound(partitioner: Partitioner) -> None:
    """Every client has training, validation and test samples, and no sample is dealt twice."""
    result = partitioned(partitioner)
    used = np.concatenate([part.indices for part in (result.train, result.validation, result.test)])
    if len(np.unique(used)) != len(used):
        raise ContractError("deal()", "each sample at one client", f"{len(used) - len(np.unique(used))} dealt twice")
    for k in range(CLIENTS):
        for name in ("train", "validation", "test"):
            if not len(getattr(result, name)[k]):
                raise ContractError("deal()", f"{name} samples for client {k}", "none")


@check("partition")
def a_split_depends_on_its_seed_alone(partitioner: Partitioner) -> None:
    """The same seed gives the same split, whatever was split before: draws come from `stream` alone."""
    first = partitioned(partitioner).hash
    partitioned(partitioner, seed=1)
    if partitioned(partitioner).hash != first:
        raise ContractError("shares()", "the same split for the same seed: draw from `stream` alone", "another split")


@check("partition")
def images_are_not_read(partitioner: Partitioner) -> None:
    """A split depends on labels, domains and users alone."""
    samples = example_samples()
    other = dataclasses.replace(samples, images=samples.images + 9)
    hashes = {split(s, partitioner, CLIENTS, 1, 0.1).hash for s in (samples, other)}
    if len(hashes) != 1:
        raise ContractError(
            "shares()", "a split that depends on labels, domains and users alone", "other splits for other images"
        )


CHECKS = (
    samples_are_complete,
    loading_again_gives_the_same,
    the_extent_equals_the_loaded_samples,
    a_split_is_sound,
    a_split_depends_on_its_seed_alone,
    images_are_not_read,
)
