"""Datasets that come as archives, which are found or downloaded, checked, and read once into a cache below the data folder.

A plug-in lists its archives and reads their files (`ArchiveDataset.build`). Datasets of image files only say
which file is which sample; see `fedbench.sources.image_dataset`. Later runs use the cache without looking at the archives,
so these may be deleted, and jobs need no network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from fedbench import data
from fedbench.base.hooks import hook
from fedbench.data import Archive, DataError, Extent, Samples
from fedbench.sources import archive_files, cache
from fedbench.sources.archive import Source


@dataclass(frozen=True)
class ArchiveDataset(data.Dataset):
    """Base of datasets that come in ``archives``; `home` is their folder below the data folder."""

    home: ClassVar[str] = ""
    version: ClassVar[int] = 1  # raise it whenever `build` or `table` returns something else

    @hook
    def build(self, sources: Mapping[str, Source], aside: Path) -> dict[str, Any] | None:
        """Save the arrays of the dataset as .npy files in the folder `aside`; `sources` {archive: its files}.

        May return notes about them, of which ``remarks``, a list of lines, is shown by `info`. Raises DataError.
        """
        raise TypeError(f"{type(self).__module__} must define build()")

    @hook
    def samples(self, arrays: Mapping[str, NDArray[Any]]) -> Samples:
        """The samples that the saved `arrays` {name: read-only memory map} make."""
        raise TypeError(f"{type(self).__module__} must define samples()")

    @property
    def needed(self) -> tuple[Archive, ...]:
        """The archives that the dataset needs with these options."""
        return self.archives

    def load(self, root: Path) -> Samples:
        """Map the cache. The first call makes it. Raises DataError."""
        return self._complete(self._cached(root, None, unasked=True))

    def prepare(self, root: Path, local: Path | None = None) -> Samples:
        """Find or fetch the archives, check them and make the cache. Raises DataError."""
        return self._complete(self._cached(root, local, unasked=False))

    def extent(self, root: Path) -> Extent:
        """The size from the cache. Raises DataError if there is no cache."""
        if any(cache.read(folder) is None for folder in self._caches(root)):
            raise DataError(
                f"{self.plugin_name} is not prepared below {root} with these options: run {self._command(root)}"
            )
        return Extent.of(self.load(root))

    def info(self, root: Path) -> list[str]:
        """The places of the archives and caches."""
        lines = []
        for archive in self.needed:
            there = archive_files.find(archive, self._places(root))
            lines.append(f"{archive.name}: {there.where if there else 'not there'}")
        return lines + [line for folder in self._caches(root) for line in cache.describe_cache(folder)]

    def verify(self, root: Path) -> list[str]:
        """Archives below `root` that differ from the official ones, and caches that differ from what was written."""
        damage = []
        for archive in self.needed:
            there = archive_files.find(archive, self._places(root))
            if there is not None and (problem := there.difference()):
                damage.append(problem)
        return damage + [line for folder in self._caches(root) for line in cache.verify_cache(folder)]

    # -- implementation ------------------------------------------------------------------------------------------------
    def _cached(self, root: Path, local: Path | None, unasked: bool) -> Samples:
        return self.samples(self._arrays(root, local, unasked))

    def _arrays(self, root: Path, local: Path | None, unasked: bool) -> dict[str, NDArray[Any]]:
        def build(aside: Path) -> dict[str, Any]:
            sources, lines = self._sources(root, local, unasked)
            try:
                about = self.build(sources, aside) or {}
            except DataError as error:
                raise DataError(f"{error}{self._advice(str(error), root)}") from error
            return {"sources": lines, **about}

        return cache.cached_arrays(self._caches(root)[0], build)

    def _advice(self, problem: str, root: Path) -> str:
        """What to do about the downloaded file that `problem` names, if it may not be the official file."""
        for archive in self.needed:
            there = archive_files.find(archive, self._places(root))
            if there is not None and str(there.path) in problem and there.may_be_another():
                return f"; if this is not the official file, {there.advice()}"
        return ""

    def _complete(self, samples: Samples) -> Samples:
        """`samples`, checked to be the whole dataset. Raises DataError."""
        count, test = len(samples.labels), int(samples.is_test.sum())
        if test in (0, count):
            raise DataError(
                f"{self.plugin_name}: expected training and test images, found {count - test:,} and {test:,}"
            )
        self._check_count(count)
        return samples

    @property
    def _lacking_share(self) -> float:
        """The largest share of the published images that may be missing."""
        return 0.0

    def _check_count(self, count: int) -> None:
        """Raises DataError if the dataset has too few images to be the published one."""
        published = self.facts.images if self.facts else 0
        if published - count > self._lacking_share * published:
            raise DataError(
                f"{self.plugin_name}: expected {published:,} images, found {count:,}: the archive or folder is only a part"
            )

    def _caches(self, root: Path) -> list[Path]:
        return [root / "cache" / f"{self.plugin_name}-{short_digest(self.version, self._options())}"]

    def _options(self) -> dict[str, Any]:
        """The fields that change the arrays."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def _command(self, root: Path) -> str:
        """The command that prepares this dataset with these options."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        words = ["--root", str(root), *(w for f in changed for w in ("--set", f"{f.name}={getattr(self, f.name)}"))]
        return shlex.join(["fedbench", "data", "prepare", self.plugin_name, *words])

    def _places(self, root: Path) -> list[Path]:
        """The folders that are searched for archives."""
        return [root / self.home, root]

    def _sources(self, root: Path, local: Path | None, unasked: bool) -> tuple[dict[str, Source], list[str]]:
        """All needed archives, opened, and a line about each for the notes. Raises DataError."""
        brought = archive_files.find_local(self.needed, local) if local is not None else {}
        sources, lines = {}, []
        for archive in self.needed:
            there = brought.get(archive.name) or archive_files.find(archive, self._places(root))
            if there is None:
                page = self.facts.page if self.facts else ""
                path = root / self.home / archive.name
                there = archive_files.fetch(archive, path, unasked, self._command(root), page)
            sources[archive.name] = there.open()
            lines.append(there.description())
        return sources, lines


def short_digest(*parts: object) -> str:
    """16 hex digits of the SHA-256 of `parts`, for the name of a cache."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
