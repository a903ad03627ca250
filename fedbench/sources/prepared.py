"""Data sets that come as archives: found or fetched, checked, read once into a cache below the data folder.

A plug-in says which archives there are and what their files mean (`ArchiveDataset.build`), or for sets of image files only
which file is which sample (`ImageDataset.table`). A cache is used without looking at the archives again, so these may be
deleted, and jobs need no network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench import data
from fedbench.base.options import option
from fedbench.data import Archive, DataError, Extent, Ints, Samples
from fedbench.sources import cache, decode, pixels
from fedbench.sources.archive import Source, open_source
from fedbench.sources.download import download, md5_of

UNASKED_BYTES = 1 << 30  # a run fetches archives up to this size by itself; larger ones are fetched by `prepare`


@dataclass(frozen=True)
class ArchiveDataset(data.Dataset):
    """Base of data sets that come in ``archives``; `home` is their folder below the data folder."""

    home: ClassVar[str] = ""
    version: ClassVar[int] = 1  # raise it whenever `build` or `table` gives something else

    def build(self, sources: Mapping[str, Source], aside: Path) -> dict[str, Any] | None:
        """Save arrays made of the archives, {name: its files}, in the folder `aside`. Raises DataError."""
        raise TypeError(f"{type(self).__module__} must define build()")

    @property
    def needed(self) -> tuple[Archive, ...]:
        """Those of the archives that these options need."""
        return self.archives

    def samples(self, arrays: Mapping[str, NDArray[Any]]) -> Samples:
        """The samples that the saved arrays make."""
        raise TypeError(f"{type(self).__module__} must define samples()")

    def load(self, root: Path) -> Samples:
        """Map the cache; the first time it is made. Raises DataError."""
        return self._cached(root, None, asked=False)

    def prepare(self, root: Path, given: Path | None = None) -> Samples:
        """Fetch what is missing, check it and make the cache. Raises DataError."""
        return self._cached(root, given, asked=True)

    def extent(self, root: Path) -> Extent:
        """By the cache. Raises DataError where there is none."""
        if any(cache.read(folder) is None for folder in self._caches(root)):
            raise DataError(f"{self._name} is not prepared below {root} with these options: run {self._command(root)}")
        return Extent.of(self.load(root))

    def info(self, root: Path) -> list[str]:
        """Where the archives and the cache are."""
        lines = []
        for archive in self.needed:
            there = _find(archive, self._places(root))
            lines.append(f"{archive.name}: {there[0] / there[1] if there else 'not there'}")
        for folder in self._caches(root):
            size = sum(path.stat().st_size for path in folder.glob("*")) if cache.read(folder) else 0
            lines.append(f"cache: {folder} ({f'{size / 1e6:,.1f} MB' if size else 'not there'})")
            notes = cache.notes(folder)
            lines += [f"  from {line}" for line in notes.get("sources", [])]
            if notes.get("skipped"):
                lines.append(f"  {len(notes['skipped'])} images left out: {'; '.join(notes['skipped'][:5])}")
        return lines

    def verify(self, root: Path) -> list[str]:
        """Checksums of archives below `root` against the official ones, and of the cache against what was written."""
        wrong = []
        for archive in self.needed:
            there = _find(archive, self._places(root))
            if there is not None and there[0].is_file():
                wrong += _unlike(archive, there[0], archive.official)[1]
        return wrong + [line for folder in self._caches(root) for line in cache.damages(folder)]

    # -- below: how ----------------------------------------------------------------------------------------------------
    def _cached(self, root: Path, given: Path | None, asked: bool) -> Samples:
        return self.samples(self._arrays(root, given, asked))

    def _arrays(self, root: Path, given: Path | None, asked: bool) -> dict[str, NDArray[Any]]:
        def build(aside: Path) -> dict[str, Any]:
            sources, lines = self._sources(root, given, asked)
            return {"sources": lines, **(self.build(sources, aside) or {})}

        return cache.cached_arrays(self._caches(root)[0], build)

    def _caches(self, root: Path) -> list[Path]:
        return [root / "cache" / f"{self._name}-{_digest(self.version, self._options())}"]

    def _options(self) -> dict[str, Any]:
        """The fields that change the arrays."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def _name(self) -> str:
        return type(self).__module__.removeprefix("fedbench_plugin_datasets_")

    def _command(self, root: Path) -> str:
        """What prepares this data set with these options."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        words = ["--root", str(root), *(w for f in changed for w in ("--set", f"{f.name}={getattr(self, f.name)}"))]
        return shlex.join(["python", "-m", "fedbench.data", "prepare", self._name, *words])

    def _places(self, root: Path) -> list[Path]:
        return [root / self.home, root]

    def _sources(self, root: Path, given: Path | None, asked: bool) -> tuple[dict[str, Source], list[str]]:
        """All archives, opened; and a line on each, for the record."""
        brought = self._brought(given) if given is not None else {}
        sources, lines = {}, []
        for archive in self.needed:
            there = brought.get(archive.name) or _find(archive, self._places(root))
            if there is None:
                there = self._fetch(archive, root, asked), ""
            path, folder = there
            line = str(path / folder)
            if path.is_file():
                told, wrong = _unlike(archive, path, archive.official)
                if wrong:
                    raise DataError("; ".join(wrong))
                line = f"{path} ({told})"
            sources[archive.name] = open_source(path, folder)
            lines.append(line)
        return sources, lines

    def _brought(self, given: Path) -> dict[str, tuple[Path, str]]:
        """What of the archives the user has. Raises DataError where it is none."""
        if given.is_file() and len(self.needed) == 1:
            return {self.needed[0].name: (given, "")}
        places = [given, *sorted(path for path in given.glob("*") if path.is_dir())] if given.is_dir() else [given]
        found = {a.name: there for a in self.needed if (there := _find(a, places)) is not None}
        if not found:
            unpacked = [f"{archive.unpacked}/" for archive in self.needed if archive.unpacked]
            raise DataError(
                f"{given}: expected {' or '.join(dict.fromkeys([*(a.name for a in self.needed), *unpacked]))}, found "
                + ("nothing there" if not given.exists() else "none of them")
            )
        return found

    def _fetch(self, archive: Archive, root: Path, asked: bool) -> Path:
        path = root / self.home / archive.name
        facts = f"{archive.size:,} bytes" if archive.size else archive.told or "of unknown size"
        facts += f", md5 {archive.md5}" if archive.md5 else ""
        by_hand = (
            f"fetch {archive.url or archive.name} ({facts}) by other means and put it at {path}, or name it: "
            f"{self._command(root)} --from PATH"
        )
        if not archive.url:
            page = f"; it is offered at {self.facts.page}" if self.facts else ""
            raise DataError(f"{archive.name} is not there and cannot be fetched without a person{page}: {by_hand}")
        if not asked and not 0 < archive.size <= UNASKED_BYTES:
            raise DataError(
                f"{archive.name} is not there, and {facts} are too much to fetch unasked: run {self._command(root)}"
            )
        try:
            download(
                archive.url, path, archive.size if archive.official else 0, archive.md5 if archive.official else ""
            )
        except DataError as error:
            raise DataError(f"{archive.name} could not be downloaded ({error}); {by_hand}") from error
        return path


def _find(archive: Archive, places: list[Path]) -> tuple[Path, str] | None:
    """Where an archive is, as a file, or as (folder, the name in it) that it was unpacked to."""
    for place in places:
        file = place if place.name == archive.name else place / archive.name
        if file.is_file():
            return file, ""
        if archive.unpacked and (place / archive.unpacked).is_dir():
            return place, archive.unpacked
        if archive.unpacked and place.name == archive.unpacked and place.is_dir():
            return place.parent, place.name
    return None


def _unlike(archive: Archive, path: Path, official: bool) -> tuple[str, list[str]]:
    """What was found of an archive, in words; and where that is not what its makers say."""
    size = path.stat().st_size
    if archive.size and size != archive.size and official:
        return "", [
            f"{path}: expected {archive.name} with {archive.size:,} bytes, found {size:,}: not that file, or a part"
        ]
    found = md5_of(path)
    if archive.md5 and found != archive.md5:
        if official:
            return "", [f"{path}: expected {archive.name} with md5 {archive.md5}, found {found}"]
        return f"{size:,} bytes, md5 {found}, not {archive.md5} as third parties report", []
    sure = (
        "as published"
        if archive.md5 and official
        else "as third parties report"
        if archive.md5
        else "nobody says which"
    )
    return f"{size:,} bytes, md5 {found}, {sure}", []


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """Which file is which sample: N rows; ``files`` are (archive, name in it), in any order."""

    files: list[tuple[str, str]]
    labels: Ints
    is_test: NDArray[np.bool_]
    class_names: tuple[str, ...]
    domain: Ints | None = None
    user: Ints | None = None
    domain_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageDataset(ArchiveDataset):
    """Base of data sets of image files: decoded once, short side resized, the middle square kept as uint8.

    Two caches: a small one of the table, and one of the pixels, which is named after the list of files. So options that
    change labels, users or the split decode nothing again.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] = option(224, "pixels per side that images are stored with")
    skip: Annotated[float, Field(ge=0, le=1)] = option(
        0.001, "largest share of images that may be missing or damaged and are left out; beyond it nothing is made"
    )

    def table(self, sources: Mapping[str, Source]) -> Table:
        """Which file of the archives is which sample. Raises DataError."""
        raise TypeError(f"{type(self).__module__} must define table()")

    def key(self, name: str) -> str:
        """What `table` calls the file `name`: another word than its name if that is not known without reading all."""
        return name

    def build(self, sources: Mapping[str, Source], aside: Path) -> None:
        """Save the table, sorted by file."""
        table = self.table(sources)
        if not table.files:
            raise DataError(f"{', '.join(str(source.path) for source in sources.values())}: no images are listed")
        order = sorted(range(len(table.files)), key=table.files.__getitem__)
        names = list(sources)
        np.save(aside / "archive.npy", np.array([names.index(table.files[i][0]) for i in order], dtype=np.int64))
        np.save(aside / "file.npy", np.array([table.files[i][1].encode() for i in order], dtype=np.bytes_))
        for name in ("labels", "is_test", "domain", "user"):
            if (column := getattr(table, name)) is not None:
                np.save(aside / f"{name}.npy", column[order])
        for name in ("class_names", "domain_names"):
            np.save(aside / f"{name}.npy", np.array(getattr(table, name), dtype=np.str_))

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in super()._options().items() if name not in ("image_size", "skip")}

    def _caches(self, root: Path) -> list[Path]:
        """The table's, and once that is there the pixels'."""
        (table,) = super()._caches(root)
        arrays = cache.read(table)
        return [table] if arrays is None else [table, self._pixels(root, arrays)]

    def _pixels(self, root: Path, table: Mapping[str, NDArray[Any]]) -> Path:
        listed = hashlib.sha256(table["file"].tobytes() + table["archive"].tobytes()).hexdigest()
        return root / "cache" / f"{self.home}-{self.image_size}px-{_digest(decode.VERSION, listed)}"

    def _cached(self, root: Path, given: Path | None, asked: bool) -> Samples:
        table = self._arrays(root, given, asked)
        folder = self._pixels(root, table)

        def build(aside: Path) -> dict[str, Any]:
            sources, lines = self._sources(root, given, asked)
            files = list(zip(table["archive"].tolist(), map(bytes.decode, table["file"].tolist()), strict=True))
            skipped = pixels.write(list(sources.values()), files, self.key, self.image_size, self.skip, aside)
            return {"sources": lines, "skipped": skipped}

        made = cache.cached_arrays(folder, build, resumes=True)
        kept, total = made["kept"], len(table["labels"])
        if total - len(kept) > self.skip * total:
            raise DataError(
                f"{folder}: {total - len(kept)} of {total} images were left out when this cache was made, more than the "
                f"share of {self.skip:g} (skip) that is asked for: {'; '.join(cache.notes(folder)['skipped'][:5])}"
            )
        column = {name: table[name][kept] for name in ("labels", "is_test", "domain", "user") if name in table}
        return Samples(
            images=made["images"],
            class_names=tuple(map(str, table["class_names"])),
            domain_names=tuple(map(str, table["domain_names"])),
            **column,
        )
