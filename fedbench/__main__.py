"""The verbs of the command line, `python -m fedbench VERB ...`; each is a module of its own, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

VERBS = {  # verb: (module with main(arguments) -> exit code, what it does)
    "sweep": ("fedbench.sweep", "do all runs of a sweep file that are not done yet"),
    "figures": ("fedbench.report", "make every table and figure"),
    "data": ("fedbench.data_cli", "see data sets and get them ready"),
    "methods": ("fedbench.methods", "list methods and aggregations with their fields"),
    "check": ("fedbench.check", "run the contract checks on a plug-in of your own"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments behind the verb to its module; returns the exit code, 2 for no or an unknown verb."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if verb in VERBS:
        code: int = importlib.import_module(VERBS[verb][0]).main(rest)
        return code
    lines = [f"  {name:<9} {what}" for name, (_, what) in VERBS.items()]
    usage = "\n".join(["usage: fedbench VERB ...   (fedbench VERB --help says more)", "", *lines, ""])
    if verb in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0
    sys.stderr.write((f"error: unknown verb {verb!r}\n" if verb else "") + usage)
    return 2


if __name__ == "__main__":
    sys.exit(main())
