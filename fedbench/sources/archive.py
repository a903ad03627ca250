"""Reads archives, folders and single files in the same way, without unpacking anything.

Members are read in place under their names in the archive. A name never becomes a path on disk, so a hostile archive cannot
write files. An archive is refused if it holds links, devices or names that lead outside, or if it would grow far beyond its
size; the message names the member. Hidden files (``.DS_Store``, ``._photo.jpg``, ``__MACOSX/``) are ignored.
"""

from __future__ import annotations

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

from fedbench.base.files import check_regular, files_below, hidden, open_file
from fedbench.data import DataError

MOST_MEMBER_BYTES = 1 << 29  # of one unpacked member; the largest of any official archive is a CIFAR batch of 155 MB
GROWTH, SLACK_BYTES = 100, 1 << 30  # all members together: at most GROWTH times the archive's size plus SLACK_BYTES
SUFFIXES = (".zip", ".gz", ".tgz", ".tar")

Read = Callable[[], bytes]
# Errors of reading a damaged archive. zipfile raises RuntimeError for passwords and unknown compression; gzip and bz2 raise
# OSError for damage.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)


class Source(ABC):
    """Files by name, with ``/`` between folders."""

    path: Path

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """The names of all files except hidden ones. For a tar archive this reads the whole file. Raises DataError."""

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises DataError if it is missing, damaged or too large."""
        for _, read in self.stream(lambda member: member == name):
            return read()
        raise DataError(f"{self.path}: expected {name} in it, found {_some(self.names)}")

    @abstractmethod
    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        """All `wanted` files, each with a function that reads it. Any thread may call the function. Raises DataError."""

    def base(self, inside: str) -> str:
        """The shortest prefix of `inside` in the names, such as ``PACS/`` for ``photo/``. Copies of an archive differ in it.

        Raises DataError if no name contains `inside`.
        """
        prefixes = {name[:at] for name in self.names if (at := f"/{name}".find(f"/{inside}")) >= 0}
        if not prefixes:
            raise DataError(f"{self.path}: expected {inside} in it, found {_some(self.names)}")
        return min(prefixes, key=len)


def open_source(path: Path, folder: str = "") -> Source:
    """The files of an archive, of the subfolder `folder` of a directory, or a single file. Raises DataError."""
    if path.is_dir():
        return _Folder(path, folder)
    try:
        if not path.exists():
            raise DataError(f"{path}: expected a file or folder, found nothing")
        check_regular(path)
        if path.suffix not in SUFFIXES:
            return _File(path)
        if zipfile.is_zipfile(path):
            return _Zip(path)
        if tarfile.is_tarfile(path):
            return _Tar(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise DataError(f"{path}: expected a zip or tar archive, found {beginning(path)}")


def beginning(path: Path) -> str:
    """The size and first bytes of a file, for messages about a file that is not an archive."""
    with open_file(path) as file:
        return f"{path.stat().st_size} bytes that begin with {file.read(16)!r}"


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, whatever its name. Raises OSError if it cannot be read."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


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
    """Refuses members of one archive by name, kind, size and total size."""

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
    """All bytes of a member, up to the limit, whatever size its header claims."""
    content = file.read(MOST_MEMBER_BYTES + 1)
    if len(content) > MOST_MEMBER_BYTES:
        raise DataError(f"{path}: refused, since {name!r:.200} in it is larger than {MOST_MEMBER_BYTES:,} bytes")
    return content


class _Zip(Source):
    """A zip archive, with random access. Every thread has its own file handle, so members are read in parallel."""

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
                if not member.is_dir() and not hidden(member.filename):
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
    """A tar archive, read in one pass from beginning to end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> Collection[str]:
        names: list[str] = []

        def collect(name: str) -> bool:
            names.append(name)
            return False

        for _ in self._members(collect):
            pass
        return dict.fromkeys(names)

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        for name, content in self._members(wanted):
            yield name, lambda content=content: content  # type: ignore[misc]

    def _members(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        limits = _Limits(self.path)
        with _named(self.path), tarfile.open(self.path) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all of a million members
                limits.member(member.name, member.size)
                if not (member.isreg() or member.isdir()):
                    limits.refuse(member.name, "a link or a device")
                if member.isreg() and not hidden(member.name) and wanted(member.name):
                    file = archive.extractfile(member)
                    if file is None:
                        raise DataError(f"{self.path}: expected {member.name} to be a file")
                    yield member.name, _content(file, member.name, self.path)
            while archive.fileobj and (rest := archive.fileobj.read(1 << 16)):  # the checksum is at the very end
                limits.member("the end", len(rest))


class _Folder(Source):
    """A folder that the user unpacked. Links in it belong to the user and are followed."""

    def __init__(self, path: Path, folder: str) -> None:
        self.path, self.folder = path, PurePosixPath(folder)

    @cached_property
    def names(self) -> Collection[str]:
        try:
            below = [file for file in files_below(self.path / self.folder) if not hidden(file.name)]
        except OSError as error:
            raise DataError(f"{error.filename}: expected a folder that can be read ({error.strerror})") from error
        return dict.fromkeys(sorted((self.folder / file).as_posix() for file in below))

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        for name in self.names:
            if wanted(name):
                yield name, lambda name=name: self._read(name)  # type: ignore[misc]

    def _read(self, name: str) -> bytes:
        try:
            with open_file(self.path / name) as file:
                return _content(file, name, self.path)
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read ({error.strerror or error})") from error


class _File(Source):
    """A single file under its own name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> Collection[str]:
        return [self.path.name]

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Read]]:
        if wanted(self.path.name):
            yield self.path.name, self.path.read_bytes
