"""The verbs of the command line, `fedbench VERB ...`. Each is a module, imported when its verb is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# verb: (module with parser(program) and main(arguments, program) -> exit code, what it does)
VERBS = {
    "sweep": ("fedbench.cli.sweep", "do all runs of a sweep file that are not done yet"),
    "status": ("fedbench.cli.status", "show the state of the runs of a sweep file"),
    "figures": ("fedbench.cli.figures", "make every table and figure"),
    "publish": ("fedbench.cli.publish", "pack the finished runs of a sweep file into one file"),
    "verify": ("fedbench.cli.verify", "rerun some of a file's published runs and compare"),
    "unpack": ("fedbench.cli.unpack", "write published runs as finished runs of a results folder"),
    "leaderboard": ("fedbench.cli.leaderboard", "make the page of all published runs"),
    "export": ("fedbench.cli.export", "write a finished run's model as files that plain timm can load"),
    "data": ("fedbench.cli.data", "list, prepare and inspect datasets and splits"),
    "methods": ("fedbench.cli.list_methods", "list methods and aggregations with their fields"),
    "check": ("fedbench.cli.check", "run the contract checks on a plug-in"),
    "new": ("fedbench.cli.new", "write the skeleton of a new plug-in"),
    "fetch-weights": ("fedbench.cli.fetch_weights", "download the backbones of a sweep file"),
    "bench": ("fedbench.bench", "measure speed and memory, and the parts of a round"),
    "completion": ("fedbench.cli.completion", "print the script for shell completion of these commands"),
}
EXAMPLE = "sweep quickstart --cluster local"


def main(arguments: Sequence[str] | None = None) -> int:
    """Pass the arguments after the verb to its module. Returns the exit code; 2 for a missing or unknown verb."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if verb in VERBS:
        code: int = importlib.import_module(VERBS[verb][0]).main(rest, f"fedbench {verb}")
        return code
    lines = [f"  {name:<13} {what}" for name, (_, what) in VERBS.items()]
    usage = ["usage: fedbench VERB ...   (see fedbench VERB --help)", "", *lines, "", "example:"]
    text = "\n".join([*usage, f"  fedbench {EXAMPLE}", ""])
    if verb in ("-h", "--help"):
        sys.stdout.write(text)
        return 0
    sys.stderr.write((f"error: unknown verb {verb!r}\n" if verb else "") + text)
    return 2
