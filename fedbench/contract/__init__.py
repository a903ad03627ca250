"""The contract of a plug-in as checks that run on any file: what the tests run over the folders, and a user on a file."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedbench.data import DataError
from fedbench.method import HookError


class ContractError(ValueError):
    """A plug-in that breaks the contract: which hook, parameter or field, what was expected and what was found."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        super().__init__(f"{where}: expected {expected}; found {found}")


@dataclass(frozen=True)
class Check:
    """One promise of a plug-in, with a name and a sentence.

    ``of``: what it is about - "plugin" (any plug-in object), "run" (any `Case`), "round" (a `Case` that trains), "merge" (the
    same: what the server does with what comes back), "dataset" or "partition". ``warns``: what it finds may be meant.
    """

    name: str
    sentence: str
    of: str
    warns: bool
    body: Callable[[Any], None]

    def run(self, subject: Any) -> None:
        """Run the check. Raises ContractError, HookError or DataError; whatever else a plug-in raises is told with its
        place."""
        try:
            self.body(subject)
        except (ContractError, HookError, DataError):
            raise
        except Exception as error:
            raise ContractError(_place(error, subject), "no exception", f"{type(error).__name__}: {error}") from error


def check(of: str, warns: bool = False) -> Callable[[Callable[[Any], None]], Check]:
    """Decorator: the function's name names the check, the first line of its docstring is its sentence."""

    def made(body: Callable[[Any], None]) -> Check:
        sentence = (body.__doc__ or "").strip().splitlines()[0].rstrip(".")
        return Check(body.__name__, sentence, of, warns, body)

    return made


def hook_name(hook: Any) -> str:
    """The contract's name of a bound hook: one that a property gives may be kept under an underscore."""
    return str(getattr(hook, "__name__", "?")).lstrip("_")


def _place(error: Exception, subject: Any) -> str:
    """``hook() in line N`` of the deepest call inside a plug-in's file; without one, the file."""
    parts = [getattr(subject, name) for name in ("method", "aggregation", "dataset") if hasattr(subject, name)]
    files = [inspect.getfile(type(part)) for part in parts or [subject]]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].name.lstrip('_')}() in line {frames[-1].lineno}" if frames else files[0]


def verdict(one: Check, subject: Any) -> str | None:
    """What is wrong with `subject`, or None."""
    try:
        one.run(subject)
    except (ContractError, HookError, DataError) as error:
        return str(error)
    return None
