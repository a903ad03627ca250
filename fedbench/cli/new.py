"""Writes the skeleton of a plug-in: `fedbench new method NAME` makes a file that passes `fedbench check`."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fedbench.cli.output import say
from fedbench.cli.skeletons import SKELETONS
from fedbench.plan.plugins import ALL_KINDS, Kind, PluginError, plugins

WRITTEN, MISTAKE = 0, 2
NAME = r"[a-z][a-z0-9_]{0,59}"

EPILOG = """\
The file goes into the subfolder of its kind, such as my_plugins/methods/. Existing files are never changed.
Exit code: 0 if the file was written, 2 if not.

examples:
  %(prog)s method my_method
  %(prog)s partition my_split --to my_data
"""


def parser(program: str = "fedbench new") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Write a new plug-in that keeps the contract, to be changed into your own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("kind", choices=tuple(SKELETONS))
    options.add_argument("name", metavar="NAME", help="name in sweep files: lower-case letters, digits and underscores")
    options.add_argument(
        "--to",
        type=Path,
        default=Path("my_plugins"),
        metavar="DIR",
        help="folder of your plug-ins (default: my_plugins)",
    )
    return options


def main(arguments: Sequence[str] | None = None, program: str = "fedbench new") -> int:
    """Write the file and return the exit code."""
    options = parser(program).parse_args(arguments)
    try:
        path = write(options.kind, options.name, options.to)
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    say(f"{path}: written. Next: fedbench check {path}; use it in a sweep with --plugins {options.to}")
    return WRITTEN


def write(kind: Kind, name: str, folder: Path) -> Path:
    """Write the skeleton of the plug-in `name` below `folder`, and return its path.

    Raises PluginError if the name is not legal or taken, or if the file exists or cannot be written.
    """
    if not re.fullmatch(NAME, name) or keyword.iskeyword(name):
        raise PluginError(
            f"{name!r} is not a legal name; legal: lower-case letters, digits and underscores, beginning with a letter, "
            "at most 60, and no word of Python such as 'class'"
        )
    path = folder / ALL_KINDS[kind][0] / f"{name}.py"
    if path.exists():
        raise PluginError(f"{path} exists; choose another name or folder")
    if name in plugins().classes[kind]:
        raise PluginError(f"fedbench has a {kind} called {name!r}; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(SKELETONS[kind].replace("NAME", name))
    except OSError as error:
        raise PluginError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path
