"""The verbs of the command line, `fedbench VERB ...`; each is a module of its own, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

# verb: (module with parser(program) and main(arguments, program) -> exit code, what it does)
VERBS = {
    "sweep": ("fedbench.cli.sweep", "do all runs of a sweep file that are not done yet"),
    "status": ("fedbench.cli.status", "say how the runs of a sweep file stand"),
    "figures": ("fedbench.cli.figures", "make every table and figure"),
    "data": ("fedbench.cli.data", "see data sets and get them ready"),
    "methods": ("fedbench.cli.list_methods", "list methods and aggregations with their fields"),
    "check": ("fedbench.cli.check", "run the contract checks on a plug-in of your own"),
    "bench": ("fedbench.bench", "measure speed, memory and the parts of a round"),
    "completion": ("fedbench.cli.completion", "print the lines that make a shell complete these commands"),
}
EXAMPLE = "sweep quickstart --cluster local"


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments behind the verb to its module; returns the exit code, 2 for no or an unknown verb."""
    program = "python -m fedbench" if Path(sys.argv[0]).name == "__main__.py" else "fedbench"
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if verb in VERBS:
        code: int = importlib.import_module(VERBS[verb][0]).main(rest, f"{program} {verb}")
        return code
    lines = [f"  {name:<11} {what}" for name, (_, what) in VERBS.items()]
    usage = [f"usage: {program} VERB ...   ({program} VERB --help says more)", "", *lines, "", "example:"]
    text = "\n".join([*usage, f"  {program} {EXAMPLE}", ""])
    if verb in ("-h", "--help"):
        sys.stdout.write(text)
        return 0
    sys.stderr.write((f"error: unknown verb {verb!r}\n" if verb else "") + text)
    return 2
