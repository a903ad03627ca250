"""The table of docs/hooks.md that lists what the files of methods and aggregations import from `fedbench.method`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

from fedbench import method
from fedbench.cli.markdown import prose, table
from fedbench.method import Param, Task

ATTRIBUTES = {"Task": "task"}  # classes whose fields and methods plug-ins read, and the name of their objects


def name_table() -> str:
    """Each public name of `fedbench.method`, with its arguments and its meaning, and the attributes of `Task`."""
    rows = [row for name in method.__all__ for row in _rows(name, getattr(method, name))]
    return f"## Names to import\n\nFrom `fedbench.method`:\n\n{table(('name', 'what it is'), rows)}"


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    yield f"`{name}{_arguments(value)}`", _meaning(value)
    if name in ATTRIBUTES:
        fields = [field.name for field in dataclasses.fields(Task)]
        yield f"`{ATTRIBUTES[name]}`", "its values: " + ", ".join(f"`{ATTRIBUTES[name]}.{field}`" for field in fields)
        functions = {key: part for key, part in vars(Task).items() if inspect.isfunction(part) and key[0] != "_"}
        for key, function in functions.items():
            yield f"`{ATTRIBUTES[name]}.{key}{_arguments(function)}`", _meaning(function)


def _arguments(value: Any) -> str:
    """The arguments with their defaults, without types; "" for names that are not called."""
    if not (inspect.isfunction(value) or value is Param):
        return ""
    signature = inspect.signature(value)
    bare = [
        parameter.replace(annotation=parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _meaning(value: Any) -> str:
    """The docstring, without what a class says of its generated signature."""
    if not (inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, types.ModuleType)):
        return "a type for annotations"
    text = re.split(r"\n\s*\n", inspect.getdoc(value) or "")
    whole = text if value in (Param, Task) else text[:1]
    return prose(" ".join(" ".join(whole).split()))
