"""The command line of the data: what data sets there are, and getting them ready before any job is sent."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedbench import split_view
from fedbench.config import ConfigError
from fedbench.data import DataError
from fedbench.plugins import PluginError, Plugins, plugins

DONE, FAILED, MISTAKE = 0, 1, 2

EPILOG = """\
Exit code: 0 done, 1 the data cannot be had or are not what they should be, 2 a mistake on the command line.
"""


@dataclass(frozen=True)
class Verb:
    """One word of the command line: its own arguments, and what it does with them and the plug-ins found."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Plugins], int]


def say(text: str) -> None:
    """A line on stdout, there at once even in a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


def _split(given: argparse.Namespace, _: Plugins) -> int:
    split_view.show(given, say)
    return DONE


def _list(_: argparse.Namespace, found: Plugins) -> int:
    for name, cls in found.classes["dataset"].items():
        say(f"{name:<20} {(cls.__doc__ or '').strip().splitlines()[0]}")
    return DONE


VERBS: dict[str, Verb] = {
    "list": Verb("every data set that is known, one a line", _no_arguments, _list),
    "split": Verb("what the splits of a sweep look like; figures, and files to publish", split_view.arguments, _split),
}


def parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    made = argparse.ArgumentParser(
        prog="python -m fedbench.data",
        description="See data sets and get them ready.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=verb.help, description=verb.help)
        one.add_argument("--plugins", nargs="+", action="extend", default=[], metavar="DIR", help="your own plug-ins")
        verb.arguments(one)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    given = parser().parse_args(arguments)
    try:
        return VERBS[given.verb].run(given, plugins(given.plugins))
    except (PluginError, ConfigError) as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
