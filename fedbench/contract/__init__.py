"""Contract checks: each promise of a plug-in as a check that runs on any plug-in file, shipped or a user's."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedbench.data import DataError
from fedbench.method import Aggregation, HookError, Method
from fedbench.method.hooks import hooks_of


class ContractError(ValueError):
    """A plug-in breaks the contract. The message names the hook, parameter or field, the expected and the actual result."""

    def __init__(self, where: str, expected: str, actual: str) -> None:
        super().__init__(f"{where}: expected {expected}; found {actual}")


@dataclass(frozen=True)
class Check:
    """One promise of a plug-in, with a name and a sentence.

    ``subject_kind``: the argument of `body` - "plugin" (any plug-in object), "run" (any `Case`), "round" (a `Case` that
    trains), "merge" (a `Case` that trains, to check how the server merges updates), "dataset" or "partition".
    ``warns``: a violation may be intended, so it is reported as a warning.
    """

    name: str
    sentence: str
    subject_kind: str
    warns: bool
    body: Callable[[Any], None]

    def run(self, subject: Any) -> None:
        """Run the check. Raises ContractError, HookError or DataError.

        Any other exception of a plug-in becomes a ContractError that names the hook and the line.
        """
        try:
            self.body(subject)
        except (ContractError, HookError, DataError):
            raise
        except Exception as error:
            raise ContractError(_place(error, subject), "no exception", f"{type(error).__name__}: {error}") from error


def check(subject_kind: str, warns: bool = False) -> Callable[[Callable[[Any], None]], Check]:
    """Decorator: the function's name becomes the check's name, and the first line of its docstring the check's sentence."""

    def make_check(body: Callable[[Any], None]) -> Check:
        sentence = (body.__doc__ or "").strip().splitlines()[0].rstrip(".")
        return Check(body.__name__, sentence, subject_kind, warns, body)

    return make_check


def _place(error: Exception, subject: Any) -> str:
    """``hook() in line N`` for an exception raised in a plug-in's file, else the file.

    The text names the hook that the core called, even if a helper function in the file raised the exception, and the line
    that raised it.
    """
    parts = [getattr(subject, name) for name in ("method", "aggregation", "dataset") if hasattr(subject, name)] or [
        subject
    ]
    files = [inspect.getfile(type(part)) for part in parts]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not frames:
        return files[0]
    hooks = {name for base in (Method, Aggregation) for name in hooks_of(base)}
    called = next((frame.name for frame in frames if frame.name in hooks), frames[-1].name)
    return f"{called}() in line {frames[-1].lineno}"


def violation(check_: Check, subject: Any) -> str | None:
    """How `subject` breaks the check, or None if it keeps it."""
    try:
        check_.run(subject)
    except (ContractError, HookError, DataError) as error:
        return str(error)
    return None
