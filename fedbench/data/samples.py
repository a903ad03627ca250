"""The content of a dataset (images, labels, further columns), and the contract of plug-ins that load datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench.base.hooks import hook, optional_hook
from fedbench.base.planned_task import PlannedTask
from fedbench.data.official import Archive, Facts

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class DataError(ValueError):
    """Data cannot be used. The message names the file or split, the expected and the actual content."""


@dataclass(frozen=True)
class Samples:
    """All N images of a dataset, of one size, with their labels.

    ``images`` uint8 [N, H, W, 3] (may be a memory map), ``labels`` int64 [N] in 0..C-1, ``is_test`` bool [N];
    optional ``domain`` and ``user`` int64 [N]. A test image of user -1 belongs to nobody; such images form the global test
    set, in addition to the test images of users.

    Raises DataError if a column has another type, shape or range.
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
            raise DataError("user may be -1 (nobody) for test samples only")
        if self.labels.min() < 0 or (self.class_names and self.labels.max() >= len(self.class_names)):
            raise DataError(
                f"labels must be in 0..{len(self.class_names) - 1}, found {self.labels.min()}..{self.labels.max()}"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes C: the number of names, or without names, the largest label plus 1."""
        return len(self.class_names) or int(self.labels.max()) + 1

    @property
    def global_test(self) -> Ints:
        """The samples that test the global model: the test images without a user if there are some, else all test images."""
        of_nobody = self.is_test & (self.user < 0) if self.user is not None else np.zeros(1, dtype=bool)
        return np.flatnonzero(of_nobody if of_nobody.any() else self.is_test)


@dataclass(frozen=True)
class Extent:
    """The size of a dataset, as an estimate needs it: numbers of samples and classes."""

    train: int
    test: int
    classes: int
    samples: Samples | None = field(default=None, compare=False)  # labels and columns without images, if known

    @classmethod
    def of(cls, samples: Samples) -> Extent:
        """The size of loaded samples."""
        test, count = int(samples.is_test.sum()), len(samples.labels)
        bare = replace(samples, images=np.empty((count, 0, 0, 3), dtype=np.uint8))
        return cls(count - test, test, samples.num_classes, bare)


@dataclass(frozen=True)
class Dataset:
    """Base of all datasets: a frozen dataclass called ``Dataset`` in a file of ``datasets/``; its fields are options.

    A field annotated ``Path`` names a file or folder of the user. It enters a run's identity by content, not by name.
    """

    citation: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    facts: ClassVar[Facts | None] = None  # published size
    archives: ClassVar[tuple[Archive, ...]] = ()  # the files that the dataset comes in

    @hook
    def load(self, root: Path) -> Samples:
        """Read the samples. Downloads and caches are written below `root`. Raises DataError."""
        raise TypeError(f"{type(self).__module__} must define load()")

    @hook
    def extent(self, root: Path) -> Extent:
        """The size of what `load` returns, without downloading, decoding or writing. Raises DataError if it is unknown."""
        raise DataError(f"{self.plugin_name} knows its size only after loading")

    @hook
    def prepare(self, root: Path, local: Path | None = None) -> Samples:
        """Do the work that `load` needs once. Prefers the user's files in `local`, an archive or a folder.

        Raises DataError.
        """
        if local is not None:
            raise DataError(f"{self.plugin_name} reads no archive; leave out --from {local}")
        return self.load(root)

    @hook
    def verify(self, root: Path) -> list[str]:
        """Damage to the files and caches below `root`, one line each; empty if all are intact."""
        return []

    @hook
    def info(self, root: Path) -> list[str]:
        """The archives and caches of this dataset below `root`, one line each."""
        return []

    @optional_hook
    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Raise ValueError if the options do not fit the task. Called when a sweep is planned, before anything starts.

        `run`: the run's config as in a sweep file, with all defaults, such as ``run["local"]["lr"]``.
        """

    @optional_hook
    def files_read(self, folder: Path) -> list[Path]:  # type: ignore[empty-body]
        """The files below `folder`, the value of a ``Path`` field, that `load` reads.

        A run's identity hashes these files only. Without this hook it hashes every file of the folder.
        """

    @property
    def plugin_name(self) -> str:
        """The name of the dataset in a sweep file, which is that of its module."""
        return type(self).__module__.removeprefix("fedbench_plugin_datasets_")
