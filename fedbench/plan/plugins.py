"""Loads plug-ins (methods, aggregations, datasets, partitioners) by path, so that users can add theirs without a fork.

The folders have no ``__init__.py`` and are never on ``sys.path``. The repository's ``datasets/`` therefore cannot shadow the
package of that name, and plug-ins cannot import each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
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

Kind = Literal["method", "aggregation", "dataset", "partition", "metric"]

# {kind: (folder, class, base)} of the plug-ins of which a run has exactly one.
PLUGIN_KINDS: dict[Kind, tuple[str, str, type]] = {
    "method": ("methods", "Method", method.Method),
    "aggregation": ("methods/aggregation", "Aggregation", method.Aggregation),
    "dataset": ("datasets", "Dataset", data.Dataset),
    "partition": ("datasets/partitioners", "Partitioner", data.SplitSource),
}
ALL_KINDS: dict[Kind, tuple[str, str, type]] = {
    **PLUGIN_KINDS,
    "metric": ("methods/metrics", "Metric", method.Metric),  # of which a run has any number
}


class PluginError(ValueError):
    """A plug-in file that cannot be used. The message names the file and the reason."""


@dataclass(frozen=True)
class Plugins:
    """The plug-ins of the project and of `folders`, which are laid out like the project: methods/, datasets/, ..."""

    folders: tuple[Path, ...] = ()

    @cached_property
    def classes(self) -> dict[Kind, dict[str, type]]:
        """{kind: {name: class}}, where the name is that of the file. Raises PluginError."""
        classes: dict[Kind, dict[str, type]] = {}
        for kind, (subfolder, class_name, base) in ALL_KINDS.items():
            classes[kind] = {}
            for home in (HOME, *self.folders):
                for path in sorted((home / subfolder).glob("*.py")):
                    if path.stem in classes[kind]:
                        raise PluginError(f"{path}: there is already a {kind} called {path.stem!r}; rename the file")
                    classes[kind][path.stem] = load(path, class_name, base)
        return classes

    def files(self, blocks: Mapping[str, Any]) -> tuple[Path, ...]:
        """The source files of the plug-ins in a run's blocks."""
        modules = [self.classes[kind][blocks[kind]["name"]].__module__ for kind in PLUGIN_KINDS]
        modules += [self.classes["metric"][block["name"]].__module__ for block in blocks.get("metrics", ())]
        return tuple(Path(str(sys.modules[module].__file__)) for module in modules)

    def make(self, kind: Kind, block: dict[str, Any]) -> Any:
        """The plug-in object of a checked config block, ``{"name": ..., field: value, ...}``."""
        return self.classes[kind][block["name"]](**{key: value for key, value in block.items() if key != "name"})


def plugins(folders: Sequence[Path | str] = ()) -> Plugins:
    """The project's plug-ins and those below `folders`. Raises PluginError if a folder does not exist."""
    paths = tuple(Path(folder).expanduser().resolve() for folder in folders)
    for path in paths:
        if not path.is_dir():
            raise PluginError(f"plug-in folder {path} does not exist")
        subfolders = [subfolder for subfolder, _, _ in ALL_KINDS.values()]
        if not any((path / subfolder).is_dir() for subfolder in subfolders):
            raise PluginError(
                f"{path}: no plug-in folder; expected plug-ins in one of {', '.join(subfolders)} below it"
            )
    return Plugins(paths)


_loaded: dict[Path, type] = {}  # each file is loaded once, since loading it again would create another class


def load(path: Path, class_name: str, base: type) -> type:
    """The class `class_name` of the file `path`. Raises PluginError if it is missing or not a dataclass derived from `base`."""
    path = path.resolve()
    if path in _loaded:
        return _loaded[path]
    name = f"fedbench_plugin_{path.parent.name}_{path.stem}"
    if name in sys.modules:  # another file of this name, whose classes look up their annotations in that module
        name += f"_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = execute(path, name)
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, base) and dataclasses.is_dataclass(cls)):
        raise PluginError(f"{path}: expected a class {class_name!r}, a frozen dataclass derived from {base.__name__}")
    _loaded[path] = cls
    return cls


def execute(path: Path, name: str) -> ModuleType:
    """Run the file `path` as a new module called `name`. Raises PluginError with the exception that the file raises."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise PluginError(f"{path}: {type(error).__name__}: {error}") from error
    return module
