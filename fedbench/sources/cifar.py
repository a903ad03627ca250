"""CIFAR-10 and CIFAR-100: archives of pickles with rows of 3 x 32 x 32 pixels. The two differ in names only.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". The layout and the checksums are published at
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench.data import DataError, Ints, Samples
from fedbench.sources.archive import Source
from fedbench.sources.archive_dataset import ArchiveDataset
from fedbench.sources.safe_pickle import load_pickle


@dataclass(frozen=True)
class CifarDataset(ArchiveDataset):
    """Base of both: `folder` in the archive, the pickles `train`, `test` and `meta`, and {labels: (names, C)}."""

    citation: ClassVar[str] = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
    licence: ClassVar[str] = "not stated; free for research with citation, https://www.cs.toronto.edu/~kriz/cifar.html"
    train: ClassVar[tuple[str, ...]]
    test: ClassVar[tuple[str, ...]]
    meta: ClassVar[str]
    kinds: ClassVar[dict[str, tuple[str, int]]]

    @property
    def labels_used(self) -> str:
        """The name in `kinds` of the labels that the dataset returns."""
        return next(iter(self.kinds))

    def _options(self) -> dict[str, Any]:
        return {}  # one cache holds all kinds of labels

    def build(self, sources: Mapping[str, Source], aside: Path) -> None:
        """Save images, all kinds of labels and their names. Raises DataError. Code in the pickles cannot run."""
        (archive,), (source,) = self.archives, sources.values()
        files = {f"{archive.unpacked}/{name}": name for name in (*self.train, *self.test, self.meta)}
        read = {
            files[name]: load_pickle(content(), f"{source.path}: {name}")
            for name, content in source.stream(files.__contains__)
        }
        if missing := [name for name in files.values() if name not in read]:
            raise DataError(
                f"{source.path}: expected the official archive with {', '.join(files)}, found no {missing[0]}"
            )
        pickles = _Pickles(source.path, read)
        for kind, (names, count) in self.kinds.items():
            np.save(aside / f"{kind}_names.npy", pickles.names(self.meta, names, count))
        parts = [*self.train, *self.test]
        images = [pickles.images(part) for part in parts]
        np.save(aside / "images.npy", np.concatenate(images))
        np.save(aside / "is_test.npy", np.repeat([part in self.test for part in parts], [len(part) for part in images]))
        for kind, (_, count) in self.kinds.items():
            columns = [pickles.labels(part, kind, len(images[n]), count) for n, part in enumerate(parts)]
            np.save(aside / f"{kind}.npy", np.concatenate(columns))

    def samples(self, arrays: Mapping[str, NDArray[Any]]) -> Samples:
        """The samples with the labels `labels_used`."""
        return Samples(
            images=arrays["images"],
            labels=np.array(arrays[self.labels_used]),
            is_test=np.array(arrays["is_test"]),
            class_names=tuple(map(str, arrays[f"{self.labels_used}_names"])),
        )


@dataclass(frozen=True)
class _Pickles:
    """The content of the pickles, {file: object}. Every part is checked before use. Methods raise DataError."""

    path: Path
    read: dict[str, Any]

    def field(self, part: str, name: str) -> Any:
        content = self.read[part]
        if not isinstance(content, dict) or name not in content:
            described = ", ".join(map(str, content)) if isinstance(content, dict) else f"{content!r:.60}"
            raise DataError(f"{self.path}: expected {name} in {part}, found {described}")
        return content[name]

    def names(self, part: str, name: str, count: int) -> NDArray[np.str_]:
        names = self.field(part, name)
        if not (isinstance(names, list) and len(names) == count and all(isinstance(each, str) for each in names)):
            raise DataError(f"{self.path}: expected {count} {name} in {part}, found {names!r:.60}")
        return np.array(names, dtype=np.str_)

    def images(self, part: str) -> NDArray[np.uint8]:
        pixels = self.field(part, "data")
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)):
            form = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else f"{pixels!r:.60}"
            raise DataError(f"{self.path}: expected data in {part} as uint8 [N, 3072], found {form}")
        return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    def labels(self, part: str, name: str, rows: int, count: int) -> Ints:
        column = self.field(part, name)
        if not (isinstance(column, list) and len(column) == rows and all(label in range(count) for label in column)):
            raise DataError(f"{self.path}: expected {rows} {name} in 0..{count - 1} in {part}, found {column!r:.60}")
        return np.array(column, dtype=np.int64)
