"""Checksums of files, computed once per process: a file with the same size, time and inode is assumed unchanged."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from fedbench.base.files import open_file
from fedbench.base.progress import progress

PIECE_BYTES = 1 << 20
SHOWN_BYTES = 1 << 30  # files of at least this size get a progress bar

Stamp = tuple[int, int, int]  # size [bytes], time of the last change [ns], inode

_known: dict[tuple[str, int, Stamp], str] = {}  # {(algorithm, device, stamp): hex digits}


def stamp_of(status: os.stat_result) -> Stamp:
    """Size, time and inode of a file, which show most changes."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The hex digits of a file's checksum. Raises OSError where `path` cannot be read or is no regular file."""
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        key = algorithm, status.st_dev, stamp_of(status)
        if key not in _known:
            _known[key] = _digest(file, path.name, status.st_size, algorithm)
    return _known[key]


def _digest(file: IO[bytes], name: str, size: int, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    shown = progress(f"checksum of {name}", size, unit="bytes") if size >= SHOWN_BYTES else nullcontext(lambda _: None)
    with shown as advance:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
