"""Reads the files of an archive, of a folder, or a single file in the same way, and unpacks nothing.

Members are read in place, under the names they have in the archive, and no name in it ever becomes a path on disk: so a
hostile archive can write nothing. It is refused all the same, by name, if it holds links, devices or names that lead
outside, and if it would grow far beyond its size.
"""

from __future__ import annotations

import os
import stat
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from fedbench.data import DataError

MOST_MEMBER_BYTES = 1 << 29  # one member, unpacked; the largest of any official archive is a CIFAR batch of 155 MB
GROWTH, SLACK_BYTES = 100, 1 << 30  # most bytes of all members: so many times the archive's own size, and these

Read = Callable[[], bytes]
# What reading a damaged or strange archive raises: RuntimeError is zipfile's of passwords and unknown compression, OSError
# gzip's and bz2's of damage.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)


class Source(ABC):
    """Files by name, / between the parts of it."""

    path: Path

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """All files; for a tar archive this reads through all of it. Raises DataError."""

    def read(self, name: str) -> bytes:
        """One file. Raises DataError where it is missing, damaged or too large."""
        for _, content in self.stream(lambda found: found == name):
            return content()
        raise DataError(f"{self.path}: expected {name} in it, found {_some(self.names)}")

    @abstractmethod
    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        """All files that are `wanted`, each with a function to read it, which any thread may call. Raises DataError."""

    def base(self, inside: str) -> str:
        """What stands before `inside` in the names, such as ``PACS/`` before ``photo/``: archives differ there.

        Raises DataError if it stands nowhere.
        """
        found = {name[:at] for name in self.names if (at := f"/{name}".find(f"/{inside}")) >= 0}
        if not found:
            raise DataError(f"{self.path}: expected {inside} in it, found {_some(self.names)}")
        return min(found, key=len)


def open_source(path: Path, folder: str = "") -> Source:
    """The files of an archive or a single file; of a directory those in its subfolder `folder`. Raises DataError."""
    if path.is_dir():
        return _Folder(path, folder)
    try:
        if not path.is_file():
            raise DataError(f"{path}: expected a file or folder, found {'nothing' if not path.exists() else 'neither'}")
        if path.suffix not in (".zip", ".gz", ".tgz", ".tar"):
            return _File(path)
        if zipfile.is_zipfile(path):
            return _Zip(path)
        if tarfile.is_tarfile(path):
            return _Tar(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    with open(path, "rb") as file:
        start = file.read(16)
    raise DataError(
        f"{path}: expected a zip or tar archive, found {path.stat().st_size} bytes that begin with {start!r}"
    )


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return f"{len(names)} files ({', '.join(shown)}, ...)" if len(names) > 3 else ", ".join(shown) or "no files"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(
            f"{path}: expected an intact archive, found {path.stat().st_size} bytes and: "
            f"{type(error).__name__}: {error or 'it is damaged'}"
        ) from error


class _Limits:
    """Counts what comes out of one archive."""

    def __init__(self, path: Path) -> None:
        self.path, self.total = path, 0
        self.most = GROWTH * path.stat().st_size + SLACK_BYTES

    def member(self, name: str, size: int) -> None:
        """Refuse a member by its name or size. Raises DataError."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or ".." in parts or parts[0].startswith("/") or ":" in parts[0] or "\0" in name:
            raise DataError(f"{self.path}: refused, since the name {name!r:.200} in it leads outside")
        if size > MOST_MEMBER_BYTES:
            raise DataError(f"{self.path}: refused, since {name!r:.200} in it would be {size:,} bytes")
        self.total += size
        if self.total > self.most:
            raise DataError(f"{self.path}: refused, since it would grow to more than {self.most:,} bytes")

    def refuse(self, name: str, kind: str) -> None:
        raise DataError(f"{self.path}: refused, since {name!r:.200} in it is {kind}")


def _content(file: IO[bytes], name: str, path: Path) -> bytes:
    """All of a member, whatever size it claims to have."""
    content = file.read(MOST_MEMBER_BYTES + 1)
    if len(content) > MOST_MEMBER_BYTES:
        raise DataError(f"{path}: refused, since {name!r:.200} in it is larger than {MOST_MEMBER_BYTES:,} bytes")
    return content


class _Zip(Source):
    """Random access; every thread has a file handle of its own, so that members are read in parallel."""

    def __init__(self, path: Path) -> None:
        self.path, self.local = path, threading.local()

    @cached_property
    def names(self) -> Collection[str]:
        limits, names = _Limits(self.path), []
        with _named(self.path), zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                limits.member(member.filename, member.file_size)
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    limits.refuse(member.filename, "a link or a device")
                if member.flag_bits & 1:
                    limits.refuse(member.filename, "encrypted")
                if not member.is_dir():
                    names.append(member.filename)
        return dict.fromkeys(names)

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        for name in self.names:
            if wanted(name):
                yield name, lambda name=name: self._read(name)  # type: ignore[misc]

    def _read(self, name: str) -> bytes:
        with _named(self.path):
            if not hasattr(self.local, "archive"):
                self.local.archive = zipfile.ZipFile(self.path)
            with self.local.archive.open(name) as file:
                return _content(file, name, self.path)


class _Tar(Source):
    """One pass from begin to end; what is wanted is read as it comes by."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> Collection[str]:
        names: list[str] = []

        def note(name: str) -> bool:
            names.append(name)
            return False

        for _ in self._members(note):
            pass
        return dict.fromkeys(names)

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        for name, content in self._members(wanted):
            yield name, lambda content=content: content  # type: ignore[misc]

    def _members(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        limits = _Limits(self.path)
        with _named(self.path), tarfile.open(self.path) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # else it remembers every one of a million
                limits.member(member.name, member.size)
                if not (member.isreg() or member.isdir()):
                    limits.refuse(member.name, "a link or a device")
                if member.isreg() and wanted(member.name):
                    file = archive.extractfile(member)
                    if file is None:
                        raise DataError(f"{self.path}: expected {member.name} to be a file")
                    yield member.name, _content(file, member.name, self.path)
            while archive.fileobj and (rest := archive.fileobj.read(1 << 16)):  # its checksum stands at the very end
                limits.member("the end", len(rest))


class _Folder(Source):
    """What a user has unpacked; links in it are the user's own and are followed."""

    def __init__(self, path: Path, folder: str) -> None:
        self.path, self.folder = path, folder

    @cached_property
    def names(self) -> Collection[str]:
        def stop(error: OSError) -> None:
            raise DataError(f"{error.filename}: expected a folder that can be read ({error.strerror})")

        names = []
        for here, folders, files in os.walk(self.path / self.folder, onerror=stop, followlinks=True):
            place = Path(here).relative_to(self.path)
            if len(place.parts) > 16:
                raise DataError(f"{self.path}: refused, since {place} lies too deep; a link may lead in circles")
            folders[:] = [name for name in folders if not name.startswith(".")]
            names += [(place / name).as_posix() for name in files]
        return dict.fromkeys(sorted(names))

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        for name in self.names:
            if wanted(name):
                yield name, lambda name=name: self._read(name)  # type: ignore[misc]

    def _read(self, name: str) -> bytes:
        try:
            with open(self.path / name, "rb") as file:
                return _content(file, name, self.path)
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read ({error.strerror or error})") from error


class _File(Source):
    """A single list, under its own name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> Collection[str]:
        return [self.path.name]

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        if wanted(self.path.name):
            yield self.path.name, self.path.read_bytes
