"""A user's own images in one .npz file, written by numpy.savez or numpy.savez_compressed."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench import data
from fedbench.data import DataError, Extent, Samples
from fedbench.sources import open_file

REQUIRED = ("images", "labels", "is_test")
OPTIONAL = ("domain", "user", "class_names")
FOREIGN = ("x_train", "train_images")  # arrays of Keras' and MedMNIST's files


@dataclass(frozen=True)
class Dataset(data.Dataset):
    """`images` uint8 [N, H, W, 3], `labels` [N], `is_test` bool [N]; optional `domain`, `user` [N], `class_names` [C].

    A test image of user -1 belongs to nobody; such images form the global test set.
    """

    citation: ClassVar[str] = "the user's own data"
    path: Path = field(metadata={"meaning": "the .npz file"})

    def load(self, root: Path) -> Samples:
        """Read and check the whole file; `root` is not used. Raises DataError."""
        arrays = _read(self.path)
        self._check_names(arrays)
        images, is_test = arrays["images"], arrays["is_test"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            self._wrong("images as uint8 [N, H, W, 3]", _form(images))
        if is_test.dtype != np.bool_ or is_test.shape != images.shape[:1]:
            self._wrong(f"is_test as bool [{len(images)}], one for each image", _form(is_test))
        if is_test.all() or not is_test.any():
            self._wrong("is_test with training and test samples", f"{is_test.sum()} of {len(is_test)} are for testing")
        labels = self._integers("labels", arrays["labels"], len(images))
        domain = self._integers("domain", arrays["domain"], len(images)) if "domain" in arrays else None
        user = self._integers("user", arrays["user"], len(images), least=-1) if "user" in arrays else None
        if user is not None and user[~is_test].min() < 0:
            self._wrong("user from 0 on for training images", f"{user[~is_test].min()}; -1, nobody, is for test images")
        names = self._names(arrays["class_names"]) if "class_names" in arrays else ()
        self._check_labels(labels, names)
        return Samples(images, labels, is_test, domain, user, names)

    def extent(self, root: Path) -> Extent:
        """The size from reading the file. Nothing is written."""
        return Extent.of(self.load(root))

    def verify(self, root: Path) -> list[str]:
        """Damage to the file. Reading it compares every array with its checksum in the file."""
        try:
            self.load(root)
        except DataError as error:
            return [str(error)]
        return []

    def _check_names(self, arrays: dict[str, NDArray[Any]]) -> None:
        missing = [name for name in REQUIRED if name not in arrays]
        extra = [name for name in arrays if name not in REQUIRED + OPTIONAL]
        if missing or extra:
            foreign = any(name in arrays for name in FOREIGN)
            advice = " (docs/data.md shows how to convert files of Keras and MedMNIST)" if foreign else ""
            self._wrong(
                f"the arrays {', '.join(REQUIRED)} and at most {', '.join(OPTIONAL)}", ", ".join(arrays) + advice
            )

    def _integers(self, name: str, values: NDArray[Any], count: int, least: int = 0) -> data.Ints:
        """A column as int64."""
        if values.dtype.kind not in "iu" or values.shape != (count,):
            self._wrong(f"{name} as integers [{count}], one for each image", _form(values))
        if values.min() < least or values.max() > np.iinfo(np.int64).max:
            self._wrong(f"{name} from {least} on", f"{values.min()}..{values.max()}")
        return values.astype(np.int64)

    def _names(self, names: NDArray[Any]) -> tuple[str, ...]:
        if names.dtype.kind != "U" or names.ndim != 1 or len(np.unique(names)) != len(names):
            self._wrong("class_names as text [C] without repetition", _form(names))
        return tuple(map(str, names))

    def _check_labels(self, labels: data.Ints, names: tuple[str, ...]) -> None:
        classes = len(names) or int(labels.max()) + 1
        if labels.max() >= classes:
            self._wrong(f"labels in 0..{classes - 1}, since there are {classes} class_names", f"{labels.max()}")
        if not names:  # with names a class may be empty; without, a gap more likely means labels that start at 1
            present = np.unique(labels)
            if len(present) < classes:
                gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
                self._wrong("labels in 0..C-1 with every class present", f"up to {classes - 1}, but none with {gap}")

    def _wrong(self, expected: str, actual: str) -> None:
        raise DataError(f"{self.path}: expected {expected}, found {actual}")


def _form(values: NDArray[Any]) -> str:
    return f"{values.dtype} {list(values.shape)}"


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file. Raises DataError."""
    try:
        with open_file(path) as file:
            if not zipfile.is_zipfile(file):
                raise DataError(
                    f"{path}: expected an .npz file (a zip of arrays), found something else or a part of one"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DataError(f"{path}: expected an .npz file, but it cannot be read ({error.strerror or error})") from error
    # Errors inside a zip: cut off, changed bytes, encrypted, an unknown compression, objects instead of arrays.
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected arrays without objects in an intact .npz file, found: {error}") from error
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise DataError(f"{path}: expected arrays only, found the file {name!r}")
    return arrays
