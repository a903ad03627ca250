"""iNaturalist with its natural users or places: photographs of 1,203 species, split by the files of Hsu et al. 2020.

Hsu, Qi and Brown 2020, "Federated Visual Classification with Real-World Data Distribution" (arXiv:2003.08082),
https://github.com/google-research/google-research/tree/master/federated_vision_datasets: federated_train*.csv (user_id,
image_id, class, label) and test.csv without users (page). The full name of User-120k's file is known from public code, those
of the Geo files are not, so a file is recognised by the number at the end of its name. The images are those of the
iNaturalist 2017 competition (https://github.com/visipedia/inat_comp/tree/master/2017, with the checksum). They are read in
one pass through the archive, and nothing is unpacked. The images of test.csv have no user (-1): they are the global
test set, and each user's own test images are held out of its training images by the partition (``test: own``).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from fedbench.data import Archive, DataError, Facts, option
from fedbench.sources import ImageDataset, Source, Table

IMAGES, USERS, PLACES = "train_val_images.tar.gz", "inaturalist-user-120k.zip", "inaturalist-geo.zip"
SPLITS = "http://storage.googleapis.com/gresearch/federated-vision-datasets"


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """120,300 training images of the users or places of a federated split, 35,641 global test images."""

    citation: ClassVar[str] = (
        "Hsu et al. 2020, arXiv:2003.08082; Van Horn et al. 2018 (iNaturalist 2017), arXiv:1707.06642"
    )
    licence: ClassVar[str] = (
        "non-commercial research and education, https://github.com/visipedia/inat_comp/tree/master/2017"
    )
    home = "inaturalist"
    facts = Facts(
        155_941,
        1_203,
        users=9_275,
        page="https://github.com/google-research/google-research/tree/master/federated_vision_datasets (splits), "
        "https://github.com/visipedia/inat_comp/tree/master/2017 (images)",
    )
    archives = (
        Archive(
            IMAGES,
            f"https://ml-inat-competition-datasets.s3.amazonaws.com/2017/{IMAGES}",
            0,
            "7c784ea5e424efaec655bd392f87301f",
            unpacked="train_val_images",
            remark="186 GB",
        ),
        Archive(USERS, f"{SPLITS}/{USERS}", unpacked="inaturalist-user-120k", remark="lists only"),
        Archive(PLACES, f"{SPLITS}/{PLACES}", unpacked="inaturalist-geo", remark="lists only"),
    )

    clients: Literal["user_120k", "geo_100", "geo_300", "geo_1k", "geo_3k", "geo_10k", "geo_30k"] = option(
        "user_120k",
        "what a client of the natural split is: a user (9,275 of them), or a cell of the map, from small to large cells "
        "(3,606, 1,208, 368, 135, 38 and 11 of them)",
        always_shown=True,
    )

    @property
    def needed(self) -> tuple[Archive, ...]:
        """The images, and the lists of the split."""
        return tuple(a for a in self.archives if a.name in (IMAGES, USERS if self.clients == "user_120k" else PLACES))

    def table(self, sources: Mapping[str, Source]) -> Table:
        """By federated_train*.csv and test.csv of the split."""
        source = sources[USERS if self.clients == "user_120k" else PLACES]
        train = _rows(source, self._train_file(source), ("user_id", "image_id", "class"))
        test = _rows(source, source.base("test.csv") + "test.csv", ("image_id", "class"))
        train = [row for row in train if row[0] not in ("", "NA")]
        _, user = np.unique([row[0] for row in train], return_inverse=True)
        labels = np.array([int(row[-1]) for row in train + test], dtype=np.int64)
        if labels.min() < 0 or labels.max() >= 1203:
            raise DataError(f"{source.path}: expected classes in 0..1202, found {labels.min()}..{labels.max()}")
        return Table(
            [(IMAGES, f"{row[-2]}.jpg") for row in train + test],
            labels,
            np.arange(len(train) + len(test)) >= len(train),
            tuple(f"species {number}" for number in range(1203)),  # the files have numbers only
            user=np.concatenate([user.astype(np.int64), np.full(len(test), -1, dtype=np.int64)]),
        )

    def key(self, name: str) -> str:
        """The image's id, which is its file's name; the lists do not name the folders of species."""
        return PurePosixPath(name).name

    def _train_file(self, source: Source) -> str:
        """federated_train*.csv of this split. Raises DataError."""
        lists = [name for name in source.names if re.fullmatch(r"federated_train.*\.csv", PurePosixPath(name).name)]
        matching = [name for name in lists if _scale(PurePosixPath(name).stem) == _scale(self.clients)]
        if len(matching) != 1:
            raise DataError(
                f"{source.path}: expected one federated_train*{self.clients}.csv, found {', '.join(lists) or 'none'}"
            )
        return matching[0]


def _scale(name: str) -> int | None:
    """The number at the end of a name: 1,000 of geo_1k, Geo-1K and geo_1000; None if there is none."""
    match = re.search(r"(\d+)(k?)$", name.lower())
    return int(match[1]) * (1000 if match[2] else 1) if match else None


def _rows(source: Source, name: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The named columns of a CSV file; the last one is a class number. Raises DataError."""
    reader = csv.DictReader(io.StringIO(source.read(name).decode("utf-8-sig")))
    if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise DataError(f"{source.path}: expected the column {missing[0]} in {name}, found {reader.fieldnames}")
    rows = [tuple((row[column] or "").strip() for column in columns) for row in reader]
    for row in rows:
        if not row[-1].isdecimal() or not re.fullmatch(r"[\w-]+", row[-2]):
            raise DataError(f"{source.path}: expected an image and a class number in each line of {name}, found {row}")
    return rows
