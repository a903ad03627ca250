"""Files and folders of users: walked without circles, and opened only if reading them cannot block."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading; links are followed.

    Raises OSError, which names `path`, if it cannot be opened or is not a regular file. A named pipe would block for ever.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_mode(os.fstat(handle).st_mode, path)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def check_regular(path: Path) -> None:
    """Raises OSError, which names `path`, where it is missing or no regular file; links are followed."""
    _check_mode(path.stat().st_mode, path)


def _check_mode(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"expected a file, found {kind}", os.fspath(path))


def hidden(name: str) -> bool:
    """Whether a relative name with ``/`` is hidden or made by macOS: ``.DS_Store``, ``._photo.jpg``, ``__MACOSX/``."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """All files below `folder`, relative to it, in no particular order.

    Links are followed, except those that lead back to a folder above them. Hidden folders are left out, and so are files
    more than `depth` folders deep. Raises OSError if a folder cannot be read.
    """
    yield from _walk(folder, Path(), (), depth)


def _walk(folder: Path, place: Path, above: tuple[tuple[int, int], ...], depth: int | None) -> Iterator[Path]:
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries]
    for name, is_folder in names:
        if not is_folder:
            yield place / name
        elif not hidden(name) and (depth is None or len(above) < depth):
            yield from _walk(folder / name, place / name, (*above, identity), depth)
