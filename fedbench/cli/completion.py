"""Prints a script, made by shtab, with which a shell completes the verbs, options and files of `fedbench`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import shtab

from fedbench.cli.main import VERBS

EPILOG = """\
examples:
  %(prog)s bash > ~/.local/share/bash-completion/completions/fedbench
  %(prog)s zsh > ~/.zfunc/_fedbench     # a folder of $fpath
"""


def parser(program: str = "fedbench completion") -> argparse.ArgumentParser:
    """The command line: one argument, the shell."""
    made = argparse.ArgumentParser(
        prog=program,
        description="Print the script with which a shell completes fedbench commands.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=("bash", "zsh"))
    return made


def every_verb() -> argparse.ArgumentParser:
    """One parser that contains the parsers of all verbs, with paths marked for completion."""
    made = argparse.ArgumentParser(prog="fedbench")
    verbs = made.add_subparsers(metavar="VERB")
    for verb, (module, what) in VERBS.items():
        parent: argparse.ArgumentParser = importlib.import_module(module).parser(f"fedbench {verb}")
        _mark_paths(verbs.add_parser(verb, parents=[parent], add_help=False, help=what))
    return made


def _mark_paths(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:  # argparse has no public list of actions
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark_paths(below)
        elif action.metavar == "DIR" or action.dest in ("root", "results"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def main(arguments: Sequence[str] | None = None, program: str = "fedbench completion") -> int:
    """Print the script and return the exit code."""
    options = parser(program).parse_args(arguments)
    sys.stdout.write(shtab.complete(every_verb(), shell=options.shell))
    return 0
