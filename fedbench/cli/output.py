"""How commands write to the terminal: at once even into a pipe, and bytes of file names that are no text as escapes."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Write a line to stderr, where a script that reads stdout does not see it."""
    sys.stderr.write(text.encode(errors="backslashreplace").decode() + "\n")
    sys.stderr.flush()
