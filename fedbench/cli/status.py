"""The command line that looks and starts nothing: `fedbench status SWEEP` is `fedbench sweep SWEEP --status`."""

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


def parser(program: str = "python -m fedbench.status") -> argparse.ArgumentParser:
    """The options, which are some of the sweep's."""
    made = argparse.ArgumentParser(
        prog=program,
        description="Say how the runs of a sweep file stand; nothing is started.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.which_runs(made)
    return made


def main(arguments: Sequence[str] | None = None, program: str = "python -m fedbench.status") -> int:
    """Say how the runs stand and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser(program).parse_args(arguments)  # help and mistakes in this verb's own words
    return sweep.main(["--status", *arguments], program)
