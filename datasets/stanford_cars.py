"""Stanford Cars: 16,185 photographs of 196 makes and models of cars, by the official lists.

Krause et al. 2013, "3D Object Representations for Fine-Grained Categorization" (3dRR). The official page is gone, so you
need a copy of the four files. The lists are MATLAB files, from which SciPy reads only numbers and text, so no code can
run. The checksums are those of torchvision's loader, which once downloaded the files (code). The bounding boxes are not used.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from fedbench.data import Archive, DataError, Facts
from fedbench.sources import ImageDataset, Source, Table

TRAIN, TEST, DEVKIT, LABELS = "cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat"


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """8,144 training and 8,041 test images of 196 classes such as "Audi S4 Sedan 2012"."""

    citation: ClassVar[str] = "Krause et al. 2013, 3D Object Representations for Fine-Grained Categorization, 3dRR"
    licence: ClassVar[str] = "not stated; for research"
    home = "stanford_cars"
    facts = Facts(16_185, 196, page="https://github.com/pytorch/vision/issues/7545 (copies; the official page is gone)")
    archives = (
        Archive(
            TRAIN,
            md5="065e5b463ae28d29e77c1b4b166cfe61",
            official=False,
            unpacked="cars_train",
            remark="training images",
        ),
        Archive(
            TEST, md5="4ce7ebf6a94d07f1952d94dd34c4d501", official=False, unpacked="cars_test", remark="test images"
        ),
        Archive(
            DEVKIT, md5="c3b158d763b6e2245038c8ad08e45376", official=False, unpacked="devkit", remark="lists and names"
        ),
        Archive(
            LABELS, md5="b0a2b23655a3edd16d84508592a98d10", official=False, remark="the classes of the test images"
        ),
    )

    def table(self, sources: Mapping[str, Source]) -> Table:
        """By cars_train_annos.mat, cars_test_annos_withlabels.mat and cars_meta.mat."""
        devkit = sources[DEVKIT]
        names = [str(name) for name in np.atleast_1d(_variable(devkit, "devkit/cars_meta.mat", "class_names"))]
        if len(names) != 196:
            raise DataError(f"{devkit.path}: expected 196 class_names in cars_meta.mat, found {len(names)}")
        train = _annotations(devkit, "devkit/cars_train_annos.mat")
        test = _annotations(sources[LABELS], LABELS)
        return Table(
            [(TRAIN, name) for name, _ in train] + [(TEST, name) for name, _ in test],
            np.array([label for _, label in train + test], dtype=np.int64),
            np.arange(len(train) + len(test)) >= len(train),
            tuple(names),
        )

    def key(self, name: str) -> str:
        """The file's name without folders: the lists have no folders, and copies differ in them."""
        return PurePosixPath(name).name

    def _places(self, root: Path) -> list[Path]:
        return [
            *super()._places(root),
            root / self.home / "devkit",
        ]  # the usual place of the labels of the test images


def _annotations(source: Source, name: str) -> list[tuple[str, int]]:
    """Each image's file and class, from 0 on (the files count from 1). Raises DataError."""
    rows = np.atleast_1d(_variable(source, name, "annotations"))
    if missing := {"fname", "class"} - set(rows.dtype.names or ()):
        raise DataError(
            f"{source.path}: expected {sorted(missing)[0]} in the annotations of {name}, found {rows.dtype}"
        )
    annotations = []
    for file, label in zip(rows["fname"].tolist(), rows["class"].tolist(), strict=True):
        if not (isinstance(file, str) and re.fullmatch(r"[\w-]+\.\w+", file) and label in range(1, 197)):
            raise DataError(
                f"{source.path}: expected a file and a class in 1..196 in {name}, found {file!r:.40}, {label!r:.40}"
            )
        annotations.append((file, int(label) - 1))
    return annotations


def _variable(source: Source, name: str, variable: str) -> Any:
    """A variable of a MATLAB file. Raises DataError."""
    from scipy.io import loadmat  # slow to import

    try:
        file: Any = io.BytesIO(source.read(name))  # SciPy accepts it, but its type stubs name paths only
        return loadmat(file, squeeze_me=True, variable_names=[variable])[variable]
    except DataError:
        raise
    except Exception as error:  # the reader raises any type of error for a damaged file
        raise DataError(
            f"{source.path}: expected a MATLAB file with {variable} as {name}, found {type(error).__name__}: {error}"
        ) from error
