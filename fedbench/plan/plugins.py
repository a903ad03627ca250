"""Finds plug-ins - methods, aggregations, datasets, partitioners - by path, so that a user's own needs no fork.

The folders have no ``__init__.py`` and are never on ``sys.path``: the repository's ``datasets/`` cannot shadow the
package of that name, and a plug-in sees `fedbench.method` or `fedbench.data` and torch, not its neighbours.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fedbench import data, method
from fedbench.base.home import HOME

Kind = Literal["method", "aggregation", "dataset", "partition"]

PLUGIN_KINDS: dict[Kind, tuple[str, str, type]] = {
    "method": ("methods", "Method", method.Method),
    "aggregation": ("methods/aggregation", "Aggregation", method.Aggregation),
    "dataset": ("datasets", "Dataset", data.Dataset),
    "partition": ("datasets/partitioners", "Partitioner", data.SplitSource),
}


class PluginError(ValueError):
    """A plug-in file that cannot be used; names the file and what it lacks."""


@dataclass(frozen=True)
class Plugins:
    """The plug-ins of the project and of `folders`, each laid out like the project: methods/, datasets/, ..."""

    folders: tuple[Path, ...] = ()

    @cached_property
    def classes(self) -> dict[Kind, dict[str, type]]:
        """{kind: {name: class}}; a file's name is the plug-in's name. Raises PluginError."""
        found: dict[Kind, dict[str, type]] = {}
        for kind, (subfolder, class_name, base) in PLUGIN_KINDS.items():
            found[kind] = {}
            for home in (HOME, *self.folders):
                for path in sorted((home / subfolder).glob("*.py")):
                    if path.stem in found[kind]:
                        raise PluginError(f"{path}: there is already a {kind} called {path.stem!r}; rename the file")
                    found[kind][path.stem] = load(path, class_name, base)
        return found

    def files(self, blocks: Mapping[str, Any]) -> tuple[Path, ...]:
        """The source files of the plug-ins that a run's blocks name."""
        modules = [self.classes[kind][blocks[kind]["name"]].__module__ for kind in PLUGIN_KINDS]
        return tuple(Path(str(sys.modules[module].__file__)) for module in modules)

    def make(self, kind: Kind, block: dict[str, Any]) -> Any:
        """The plug-in object of a checked config block, ``{"name": ..., field: value, ...}``."""
        return self.classes[kind][block["name"]](**{key: value for key, value in block.items() if key != "name"})


def plugins(folders: Sequence[Path | str] = ()) -> Plugins:
    """The project's plug-ins and those below `folders`. Raises PluginError where a folder does not exist."""
    paths = tuple(Path(folder).resolve() for folder in folders)
    for path in paths:
        if not path.is_dir():
            raise PluginError(f"plug-in folder {path} does not exist")
    return Plugins(paths)


_loaded: dict[Path, type] = {}  # importing a file twice would make two classes of one plug-in


def load(path: Path, class_name: str, base: type) -> type:
    """The class `class_name` of the file `path`. Raises PluginError where it is missing or not what it should be."""
    path = path.resolve()
    if path in _loaded:
        return _loaded[path]
    module = execute(path, f"fedbench_plugin_{path.parent.name}_{path.stem}")
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base) and dataclasses.is_dataclass(cls)):
        raise PluginError(f"{path}: expected a class {class_name!r}, a frozen dataclass derived from {base.__name__}")
    _loaded[path] = cls
    return cls


def execute(path: Path, name: str) -> ModuleType:
    """The file `path` run as a new module called `name`. Raises PluginError with whatever the file raises."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before exec: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises is the file's fault, and is named
        raise PluginError(f"{path}: {type(error).__name__}: {error}") from error
    return module
