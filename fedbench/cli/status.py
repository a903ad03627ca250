"""Shows the state of runs: `fedbench status SWEEP` is the same as `fedbench sweep SWEEP --status`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fedbench.cli import sweep

EPILOG = """\
Exit code: 0 none failed, 1 some runs failed, 2 a mistake in the file or on the command line.

examples:
  %(prog)s sweeps/quickstart.yaml
  %(prog)s sweeps/main_table.yaml --results /scratch/me/results --json
"""


def parser(program: str = "fedbench status") -> argparse.ArgumentParser:
    """The options, some of those of `fedbench sweep`."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Show the state of the runs of a sweep file; nothing is started.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_run_options(options)
    return options


def main(arguments: Sequence[str] | None = None, program: str = "fedbench status") -> int:
    """Show the state of the runs, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser(program).parse_args(arguments)  # prints help and mistakes for this verb
    return sweep.main(["--status", *arguments], program)
