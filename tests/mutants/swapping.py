"""Put a changed file into a process that has loaded it: its functions get the changed code in place."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from pathlib import Path


def changed_functions(old: bytes, new: bytes, name: str) -> list[tuple[types.CodeType, types.CodeType]] | None:
    """(old code, new code) of each function that differs; None if something outside functions differs."""
    before, after = (compile(source, name, "exec", dont_inherit=True) for source in (old, new))
    changed: list[tuple[types.CodeType, types.CodeType]] = []
    return changed if compared(before, after, changed) else None


def compared(old: types.CodeType, new: types.CodeType, changed: list[tuple[types.CodeType, types.CodeType]]) -> bool:
    """Whether only functions differ, and the same variables are free in them; appends these to `changed`."""
    inside, inside_new = nested(old), nested(new)
    if old.co_flags & 0x2:  # a function, not a module or a class body
        if everything(old) != everything(new):
            changed.append((old, new))
        return len(old.co_freevars) == len(new.co_freevars)
    if itself(old) != itself(new) or len(inside) != len(inside_new):
        return False
    return all(compared(x, y, changed) for x, y in zip(inside, inside_new, strict=True))


def nested(code: types.CodeType) -> list[types.CodeType]:
    """The code of functions and classes inside."""
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def itself(code: types.CodeType) -> tuple[object, ...]:
    """What a code does without the codes inside; places in the file do not count."""
    constants = [None if isinstance(x, types.CodeType) else (type(x), repr(x)) for x in code.co_consts]
    variables = (code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_names, variables, code.co_exceptiontable, tuple(constants)


def everything(code: types.CodeType) -> tuple[object, ...]:
    """What a code does, with the codes inside."""
    return itself(code), tuple(map(everything, nested(code)))


def swap(path: Path, old: bytes, new: bytes) -> None:
    """Give the functions that this process loaded from `path` the code of `new` instead of `old`.

    Functions that are loaded later must find `new` in the file. Raises ValueError if code outside functions differs.
    """
    changed = changed_functions(old, new, str(path))
    if changed is None:
        raise ValueError(f"the change in {path} is not within a function")
    codes = {(x.co_qualname, x.co_firstlineno): y for x, y in changed}
    for function in loaded(str(path)):
        key = (function.__code__.co_qualname, function.__code__.co_firstlineno)
        if key in codes:
            function.__code__ = codes[key]


def loaded(name: str) -> list[Callable[..., object]]:
    """Every function of this process that was read from the file `name`."""
    return [x for x in gc.get_objects() if type(x) is types.FunctionType and x.__code__.co_filename == name]
