"""Output of commands: flushed at once, even into a pipe; bytes in file names that are not text are escaped."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Write a line to stderr, so that scripts that read stdout do not see it."""
    sys.stderr.write(text.encode(errors="backslashreplace").decode() + "\n")
    sys.stderr.flush()
