"""The official archives of a dataset on disk: finds or downloads them, and compares their published size and checksum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbench.base.checksums import checksum
from fedbench.base.files import check_regular
from fedbench.data import Archive, DataError
from fedbench.sources.archive import Source, open_source
from fedbench.sources.download import download

UNASKED_BYTES = 1 << 30  # a run downloads archives up to this size by itself; only `prepare` downloads larger ones


@dataclass(frozen=True)
class ArchiveOnDisk:
    """An archive as a file (`folder` is empty), or unpacked in the subfolder `folder` of the folder `path`."""

    archive: Archive
    path: Path
    folder: str = ""

    @property
    def where(self) -> Path:
        """The file, or the unpacked folder."""
        return self.path / self.folder

    def difference(self) -> str:
        """How a file differs from the published one; "" if it does not, or if nothing is published."""
        if not self.archive.official or not self.path.is_file():
            return ""
        size = self.path.stat().st_size
        if self.archive.size and size != self.archive.size:
            return (
                f"{self.path}: expected {self.archive.name} with {self.archive.size:,} bytes, found {size:,}: another "
                f"file, or a part; {self.advice()}"
            )
        if self.archive.md5 and (md5 := checksum(self.path, "md5")) != self.archive.md5:
            return (
                f"{self.path}: expected {self.archive.name} with md5 {self.archive.md5}, found {md5}; {self.advice()}"
            )
        return ""

    def description(self) -> str:
        """The place of the archive, its size and its checksum, for the notes."""
        if not self.path.is_file():
            return str(self.where)
        md5, expected = checksum(self.path, "md5"), self.archive.md5
        if not expected:
            verdict = ", no published checksum"
        elif md5 != expected:
            verdict = f", not {expected} as third parties report"
        else:
            verdict = ", as published" if self.archive.official else ", as third parties report"
        return f"{self.path} ({self.path.stat().st_size:,} bytes, md5 {md5}{verdict})"

    def open(self) -> Source:
        """The files in the archive. Raises DataError, whose message says what to do."""
        if problem := self.difference():
            raise DataError(problem)
        try:
            return open_source(self.path, self.folder)
        except DataError as error:
            raise DataError(f"{error}; {self.advice()}") from error

    def may_be_another(self) -> bool:
        """Whether a download may not be the official file: its checksum is not the reported one, or none is reported."""
        if not self.archive.url or not self.path.is_file():
            return False
        return not self.archive.md5 or checksum(self.path, "md5") != self.archive.md5

    def advice(self) -> str:
        """What to do about a file that is not the official one."""
        if self.archive.url:
            return f"delete {self.path}, and the same command fetches it again"
        return f"put the official {self.archive.name} in its place"


def find(archive: Archive, places: Sequence[Path]) -> ArchiveOnDisk | None:
    """The archive in the first of the folders (or under the path) `places` that has it, as a file or unpacked."""
    for place in places:
        file = place if place.name == archive.name else place / archive.name
        if file.exists() and not file.is_dir():
            return ArchiveOnDisk(archive, file)
        if archive.unpacked and (place / archive.unpacked).is_dir():
            return ArchiveOnDisk(archive, place, archive.unpacked)
        if archive.unpacked and place.name == archive.unpacked and place.is_dir():
            return ArchiveOnDisk(archive, place.parent, place.name)
    return None


def find_local(needed: Sequence[Archive], local: Path) -> dict[str, ArchiveOnDisk]:
    """The `needed` archives that the user has in `local`, by name. Raises DataError if there are none."""
    if local.exists() and not local.is_dir() and len(needed) == 1:
        try:
            check_regular(local)
        except OSError as error:
            raise DataError(f"{local}: {error.strerror}") from error
        return {needed[0].name: ArchiveOnDisk(needed[0], local)}
    places = [local, *sorted(path for path in local.glob("*") if path.is_dir())] if local.is_dir() else [local]
    on_disk = {archive.name: there for archive in needed if (there := find(archive, places)) is not None}
    if not on_disk:
        unpacked = [f"{archive.unpacked}/" for archive in needed if archive.unpacked]
        names = dict.fromkeys([*(archive.name for archive in needed), *unpacked])
        raise DataError(
            f"{local}: expected {' or '.join(names)}, found "
            + ("nothing there" if not local.exists() else "none of them")
        )
    return on_disk


def fetch(archive: Archive, path: Path, unasked: bool, command: str, page: str) -> ArchiveOnDisk:
    """Download an archive to `path`.

    `unasked`: a run asks, and downloads at most `UNASKED_BYTES`. Messages say how to get the file otherwise: with `command`,
    which prepares the dataset, or by hand from `page`. Raises DataError.
    """
    facts = f"{archive.size:,} bytes" if archive.size else archive.remark or "of unknown size"
    facts += f", md5 {archive.md5}" if archive.md5 else ""
    by_hand = (
        f"fetch {archive.url or archive.name} ({facts}) by other means and put it at {path}, or name it: "
        f"{command} --from PATH"
    )
    if not archive.url:
        offered = f"; it is offered at {page}" if page else ""
        raise DataError(f"{archive.name} is not there and cannot be fetched without a person{offered}: {by_hand}")
    if unasked and not 0 < archive.size <= UNASKED_BYTES:
        raise DataError(f"{archive.name} is not there, and {facts} are too much to fetch unasked: run {command}")
    size, md5 = (archive.size, archive.md5) if archive.official else (0, "")
    try:
        download(archive.url, path, size, md5)
    except DataError as error:
        raise DataError(f"{archive.name} could not be downloaded ({error}); {by_hand}") from error
    return ArchiveOnDisk(archive, path)
