"""How hooks are declared: once, as a typed stub on a base class. Checks, documentation and errors follow from the stubs.

A stub under `optional_hook` is absent (None) until a plug-in overrides it, so an unused hook costs nothing.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class HookError(TypeError):
    """A hook breaks the contract. The message names the file, the hook, the expected result and the actual one."""


class _Absent:
    """An optional hook that nobody has overridden: None on an object, its own stub on the class."""

    def __init__(self, stub: Callable[..., Any]) -> None:
        self.stub = stub
        self.__doc__ = stub.__doc__

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else None


class _Conditional:
    """A hook that an object has only if `condition` holds for it."""

    def __init__(self, condition: Callable[[Any], bool], function: Callable[..., Any]) -> None:
        self.condition, self.function = condition, function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        return self.function.__get__(instance, owner) if self.condition(instance) else None


if TYPE_CHECKING:  # for type checkers a hook is an ordinary method, so that they check every override

    def hook(stub: F) -> F:
        """Mark a hook that every plug-in has."""

    def optional_hook(stub: F) -> F:
        """Mark a hook that is absent unless a plug-in overrides it."""

    def only_if(condition: Callable[[Any], bool]) -> Callable[[F], F]:
        """Declare a hook that an object has only if ``condition(self)`` holds."""

else:

    def hook(stub):
        """Mark a hook that every plug-in has."""
        stub.is_hook = True
        return stub

    def optional_hook(stub):
        """Mark a hook that is absent unless a plug-in overrides it."""
        stub.is_hook = True
        return _Absent(stub)

    def only_if(condition):
        """Declare a hook that an object has only if ``condition(self)`` holds."""
        return lambda function: _Conditional(condition, function)


def hooks_of(base: type) -> Mapping[str, inspect.Signature]:
    """``{hook: signature without self}`` of all hooks that `base` and its parents declare, in order of declaration."""
    signatures = {}
    for cls in reversed(base.__mro__):
        for name, value in vars(cls).items():
            stub = value.stub if isinstance(value, _Absent) else value
            if getattr(stub, "is_hook", False):
                whole = inspect.signature(stub)
                signatures[name] = whole.replace(parameters=list(whole.parameters.values())[1:])
    return signatures


def is_optional(base: type, name: str) -> bool:
    """Whether the hook `name` of `base` is absent unless a plug-in overrides it."""
    return isinstance(inspect.getattr_static(base, name), _Absent)


def describe(hook: Any, error: BaseException | None = None) -> str:
    """``file: hook()`` for a plug-in's bound hook, for messages; with the line in that file where `error` was raised."""
    owner = type(getattr(hook, "__self__", hook))
    file = getattr(sys.modules.get(owner.__module__), "__file__", None) or owner.__module__
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    line = next((f" in line {frame.lineno}" for frame in reversed(frames) if frame.filename == file), "")
    return f"{file}: {getattr(hook, '__name__', '?')}(){line}"
