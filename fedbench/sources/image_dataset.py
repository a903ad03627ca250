"""Datasets of image files: a plug-in lists which file is which sample, and all images are decoded once."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench.base.hooks import hook
from fedbench.base.options import option
from fedbench.data import DataError, Ints, Samples
from fedbench.sources import cache, decode, pixels
from fedbench.sources.archive import Source
from fedbench.sources.archive_dataset import ArchiveDataset, short_digest


@dataclass(frozen=True)
class Table:
    """Which file is which sample: N rows in any order; ``files`` are (archive, name in it)."""

    files: list[tuple[str, str]]
    labels: Ints  # [N]
    is_test: NDArray[np.bool_]  # [N]
    class_names: tuple[str, ...]
    domain: Ints | None = None  # [N]
    user: Ints | None = None  # [N]
    domain_names: tuple[str, ...] = ()

    def repeated(self) -> list[str]:
        """A line for each file that is listed more than once. Each of its rows is a sample.

        Raises DataError if such a file has two classes, or is both for training and for testing.
        """
        rows_of = defaultdict(list)
        for row, file in enumerate(self.files):
            rows_of[file].append(row)
        repeated = {file: rows for file, rows in rows_of.items() if len(rows) > 1}
        for (archive, name), rows in repeated.items():
            if len({(int(self.labels[row]), bool(self.is_test[row])) for row in rows}) > 1:
                raise DataError(
                    f"{archive}: {name} is listed {len(rows)} times, with different classes or for training and testing"
                )
        return [f"{name} is listed {len(rows)} times" for (_, name), rows in repeated.items()]


@dataclass(frozen=True)
class ImageDataset(ArchiveDataset):
    """Base of datasets of image files: decoded once, short side resized, the centre square kept as uint8.

    There are two caches: a small cache of the table, and a cache of the pixels, named after the list of files. Options
    that change labels, users or the split therefore need no decoding.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] = option(224, "pixels per side of the stored images")
    skip: Annotated[float, Field(ge=0, le=1)] = option(
        0.001, "largest share of missing or damaged images to leave out; if more are missing, preparing fails"
    )

    @hook
    def table(self, sources: Mapping[str, Source]) -> Table:
        """Which file of the archives is which sample; `sources` {archive: its files}. Raises DataError."""
        raise TypeError(f"{type(self).__module__} must define table()")

    @hook
    def key(self, name: str) -> str:
        """The name by which `table` refers to the file `name`, if full names are unknown before the archive is read."""
        return name

    def build(self, sources: Mapping[str, Source], aside: Path) -> dict[str, Any]:
        """Save the table, sorted by file."""
        table = self.table(sources)
        if not table.files:
            raise DataError(f"{', '.join(str(source.path) for source in sources.values())}: no images are listed")
        self._check_count(len(table.files))
        order = sorted(range(len(table.files)), key=table.files.__getitem__)
        names = list(sources)
        np.save(aside / "archive.npy", np.array([names.index(table.files[i][0]) for i in order], dtype=np.int64))
        np.save(aside / "file.npy", np.array([os.fsencode(table.files[i][1]) for i in order], dtype=np.bytes_))
        for name in ("labels", "is_test", "domain", "user"):
            if (column := getattr(table, name)) is not None:
                np.save(aside / f"{name}.npy", column[order])
        for name in ("class_names", "domain_names"):
            np.save(aside / f"{name}.npy", np.array(getattr(table, name), dtype=np.str_))
        return {"remarks": table.repeated()}

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in super()._options().items() if name not in ("image_size", "skip")}

    def _caches(self, root: Path) -> list[Path]:
        """The table's cache and, once it exists, the cache of the pixels."""
        (table,) = super()._caches(root)
        arrays = cache.read(table)
        return [table] if arrays is None else [table, self._pixels(root, arrays)]

    def _pixels(self, root: Path, table: Mapping[str, NDArray[Any]]) -> Path:
        listed = hashlib.sha256(table["file"].tobytes() + table["archive"].tobytes()).hexdigest()
        return root / "cache" / f"{self.home}-{self.image_size}px-{short_digest(decode.VERSION, listed)}"

    def _cached(self, root: Path, local: Path | None, unasked: bool) -> Samples:
        table = self._arrays(root, local, unasked)
        folder = self._pixels(root, table)

        def build(aside: Path) -> dict[str, Any]:
            sources, lines = self._sources(root, local, unasked)
            files = list(zip(table["archive"].tolist(), map(os.fsdecode, table["file"].tolist()), strict=True))
            skipped = pixels.write(list(sources.values()), files, self.key, self.image_size, self.skip, aside)
            return {"sources": lines, "skipped": skipped}

        arrays = cache.cached_arrays(folder, build, resumes=True)
        kept, total = arrays["kept"], len(table["labels"])
        if total - len(kept) > self.skip * total:
            raise DataError(
                f"{folder}: {total - len(kept)} of {total} images were left out when this cache was made, more than the "
                f"share of {self.skip:g} allowed by skip: {'; '.join(cache.notes(folder)['skipped'][:5])}"
            )
        column = {name: table[name][kept] for name in ("labels", "is_test", "domain", "user") if name in table}
        return Samples(
            images=arrays["images"],
            class_names=tuple(map(str, table["class_names"])),
            domain_names=tuple(map(str, table["domain_names"])),
            **column,
        )

    @property
    def _lacking_share(self) -> float:
        return self.skip
