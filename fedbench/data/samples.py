"""What a dataset holds: images, labels and columns, and the contract of the plug-ins that load them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench.data.official import Archive, Facts

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class DataError(ValueError):
    """Data that cannot be used: says which file or split, what was expected and what was found."""


@dataclass(frozen=True)
class Samples:
    """All images of a dataset with their labels; N images of one size.

    ``images`` uint8 [N, H, W, 3] (a memory map is welcome), ``labels`` int64 [N] in 0..C-1, ``is_test`` bool [N];
    optional ``domain`` and ``user`` int64 [N]. A test image of user -1 is nobody's: such images make up the global test
    set, beside the test images of each user's own.
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
        if self.user is not None and (self.user[~self.is_test] < 0).any():
            raise DataError("user may be -1 (nobody's) for test samples only")
        if self.labels.min() < 0 or (self.class_names and self.labels.max() >= len(self.class_names)):
            raise DataError(
                f"labels must be in 0..{len(self.class_names) - 1}, found {self.labels.min()}..{self.labels.max()}"
            )

    @property
    def num_classes(self) -> int:
        """C: the number of classes, from the names where there are some."""
        return len(self.class_names) or int(self.labels.max()) + 1

    @property
    def global_test(self) -> Ints:
        """The samples that the server's model is tested on: nobody's test images where there are some, else all of them."""
        nobodys = self.is_test & (self.user < 0) if self.user is not None else np.zeros(1, dtype=bool)
        return np.flatnonzero(nobodys if nobodys.any() else self.is_test)


@dataclass(frozen=True)
class Extent:
    """How much a dataset holds: all that an estimate asks for."""

    train: int
    test: int
    classes: int

    @classmethod
    def of(cls, samples: Samples) -> Extent:
        """Counted."""
        test = int(samples.is_test.sum())
        return cls(len(samples.labels) - test, test, samples.num_classes)


@dataclass(frozen=True)
class Dataset:
    """Base of all datasets: a frozen dataclass called ``Dataset`` in a file of ``datasets/``; its fields are options.

    A field annotated ``Path`` names a file or folder of the user; it enters a run's identity by content, not by name.
    """

    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    facts: ClassVar[Facts | None] = None  # what is published about its size
    archives: ClassVar[tuple[Archive, ...]] = ()  # the files that it comes in

    def load(self, root: Path) -> Samples:
        """Read the samples; downloads and caches go below `root`. Raises DataError."""
        raise TypeError(f"{type(self).__module__} must define load()")

    def extent(self, root: Path) -> Extent:
        """What `load` would give, if that is known without fetching, decoding or writing anything. Raises DataError."""
        raise DataError(f"{type(self).__module__.rpartition('_')[2]} says how much it holds only when it is loaded")

    def prepare(self, root: Path, given: Path | None = None) -> Samples:
        """Do once what `load` needs, with files from `given` (an archive or a folder) before others. Raises DataError."""
        if given is not None:
            raise DataError(
                f"{type(self).__module__.rpartition('_')[2]} reads no archive, so {given} is of no use to it"
            )
        return self.load(root)

    def damages(self, root: Path) -> list[str]:
        """What is wrong with the files and caches below `root`, a line each."""
        return []

    def told(self, root: Path) -> list[str]:
        """What is to be known about the files and caches below `root`, a line each."""
        return []
