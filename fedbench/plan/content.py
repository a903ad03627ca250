"""The content of a user's files and folders, as it enters a run's identity.

Hashes of files are kept in an index below the data folder, by size, time of change and inode, so that a folder is read
once and then only listed. Planning reads the index and never writes it; `save` does, when runs start or data are prepared.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedbench.base.checksums import checksum, stamp_of
from fedbench.base.files import files_below, hidden
from fedbench.base.storage import write_atomically

FileLister = Callable[[Path], Iterable[Path]]
SETTLED_NS = 2_000_000_000  # a file changed later than this before it was read may change again at the same time stamp

_hashes: dict[tuple[Path, bool], str] = {}  # of this process, until `forget`
_indexes: dict[Path, _Index] = {}  # by index file


def forget() -> None:
    """Look at all files again: they may have changed."""
    _hashes.clear()


def content_hash(path: Path, files_read: FileLister | None = None, data: Path | None = None) -> str:
    """16 hex digits of a file's bytes, or of the names and bytes of a folder's files.

    ``files_read(path)`` lists the files below a folder that count; without it all do but hidden ones. `data` is the data
    folder with the index. Raises OSError where a file cannot be read, and what `files_read` raises.
    """
    key = path, files_read is not None
    if key not in _hashes:
        index, below = _Index.of(path, data), len(str(path)) + 1
        digest = hashlib.sha256()
        for file in _files(path, files_read):
            name = str(file)[below:] or "."
            digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(index.checksum(file, name)))
        _hashes[key] = digest.hexdigest()[:16]
    return _hashes[key]


def by_content(value: Any, files_read: FileLister | None = None, data: Path | None = None) -> Any:
    """`value` with every Path in it replaced by its `content_hash`. Raises OSError."""
    if isinstance(value, Path):
        return content_hash(value, files_read, data)
    if isinstance(value, dict):
        return {key: by_content(item, files_read, data) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [by_content(item, files_read, data) for item in value]
    return value


def save() -> None:
    """Write all hashes that this process has computed. A data folder that cannot be written costs time, not the run."""
    for index in _indexes.values():
        with suppress(OSError):
            index.save()


def _files(path: Path, files_read: FileLister | None) -> list[Path]:
    if not path.is_dir():
        return [path]
    if files_read is not None:
        return sorted(files_read(path))
    return sorted(path / file for file in files_below(path) if not hidden(file.name))


class _Index:
    """The hashes of the files of one folder, or of one file, {relative name: (size, mtime_ns, inode, sha256)}."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.changed = file, False
        self.entries: dict[str, list[Any]] = {}
        if file is not None:
            with suppress(OSError, ValueError):
                content = json.loads(file.read_text())
                if isinstance(content, dict):
                    self.entries = content

    @classmethod
    def of(cls, path: Path, data: Path | None) -> _Index:
        if data is None:
            return cls(None)
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        file = data / "cache" / "content" / f"{name}.json"
        if file not in _indexes:
            _indexes[file] = cls(file)
        return _indexes[file]

    def checksum(self, file: Path, name: str) -> str:
        """The SHA-256 of `file`, from the index if the entry `name` shows that it is unchanged. Raises OSError."""
        status = file.stat()
        stamp = list(stamp_of(status))
        entry = self.entries.get(name)
        if isinstance(entry, list) and entry[:3] == stamp and len(entry) == 4 and _is_sha256(entry[3]):
            return str(entry[3])
        digest = checksum(file)
        if time.time_ns() - status.st_mtime_ns > SETTLED_NS:
            self.entries[name] = [*stamp, digest]
            self.changed = True
        return digest

    def save(self) -> None:
        """Write the index if it changed. Raises OSError."""
        if self.changed and self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(self.entries).encode())
            self.changed = False


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
