"""Identifies the code that computes a run's numbers: the git commit, and hashes of the source."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from fedbench.base.home import INSTALLED, PACKAGE, ROOT

# Folders whose code can change a run's numbers. The others start, watch, check or report runs.
NUMERIC = ("base", "method", "data", "sources", "vit", "plan", "run")


@cache
def commit() -> str | None:
    """The code's git commit, 12 digits, with ``+`` if files differ from it; None outside a checkout."""
    if INSTALLED:
        return None  # the installation folder may be inside another repository
    # Without locks: many jobs run this at once and may be killed, and the checkout belongs to the user.
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "--no-optional-locks", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


@cache
def code_hash(plugin_files: tuple[Path, ...] = ()) -> str:
    """``<core>-<plug-ins>``, 8 hex digits each, of the source that computes a run's numbers.

    The commit alone does not show uncommitted changes or a user's own plug-ins.
    """
    core = [path for folder in NUMERIC for path in (PACKAGE / folder).rglob("*.py")]
    return f"{_hash(core)}-{_hash(plugin_files)}"


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
