"""Names files by their content, since that is what changes a run's numbers."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any


def by_content(value: Any) -> Any:
    """`value` with each file replaced by the hash of its content. Raises OSError."""
    if isinstance(value, Path):
        return content_hash(value)
    if isinstance(value, dict):
        return {key: by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [by_content(item) for item in value]
    return value


@lru_cache(maxsize=64)
def content_hash(path: Path) -> str:
    """16 hex digits of a file's bytes, or of a folder's file names and bytes. Raises OSError."""
    digest = hashlib.sha256()
    walk = os.walk(path, followlinks=True)  # linked class folders are part of a data set
    files = sorted(Path(top) / name for top, _, names in walk for name in names) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
