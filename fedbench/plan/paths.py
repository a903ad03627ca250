"""Paths of a sweep file: ``~`` and ``$VARIABLE`` are expanded. Relative paths start at the current folder."""

from __future__ import annotations

import os
import re
from pathlib import Path


def expanded(path: Path) -> Path:
    """`path` as an absolute path, with ``~`` and variables replaced. Raises ValueError.

    A path that exists as it is written is taken literally.
    """
    text = str(path)
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL character")
    if not os.path.lexists(text):
        text = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 - Path.expanduser raises for unknown users
        if text.startswith("~"):
            raise ValueError(f"{path}: no user is called {Path(text).parts[0][1:]!r}")
        if missing := re.search(r"\$(\w+|\{[^}]*\})", text):
            raise ValueError(f"{path}: the environment variable {missing[0]} is not set")
    return Path(text).resolve()


def problem_with(path: Path, written: Path) -> str | None:
    """A sentence if the absolute `path` is neither a file nor a folder, else None. `written`: as in the sweep file."""
    if path.is_file() or path.is_dir():
        return None
    if path.exists():
        return f"{path}: neither a regular file nor a folder"
    start = "" if written.is_absolute() or str(written).startswith(("~", "$")) else " (relative to the current folder)"
    return f"{path}: No such file or directory{start}"
