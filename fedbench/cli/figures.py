"""The command line of reports: makes all tables and figures, and prints the main table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedbench.base import fork_pool
from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.report.published import FOLDER, ReferencesError
from fedbench.report.selection import ReportError, select
from fedbench.report.tables.metrics import MAIN, METRIC

EPILOG = """\
examples:
  %(prog)s sweeps/quickstart.yaml
  %(prog)s sweeps/main_table.yaml --results /scratch/me/results --out paper/ --intervals
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog=program,
        description="Make every table and figure, and a page that shows them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "sweeps", nargs="*", type=Path, metavar="SWEEP.yaml", help="report exactly the runs of these files"
    )
    made.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where runs are (results)")
    made.add_argument(
        "--out", type=Path, default=Path("reports/out"), metavar="DIR", help="where to write (reports/out)"
    )
    made.add_argument("--plugins", type=Path, nargs="+", default=[], metavar="DIR", help="folders of further plug-ins")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="the same settings as for the sweep"
    )
    made.add_argument(
        "--intervals",
        action="store_true",
        help="95 %% intervals of the mean (Student's t over seeds) in place of ± std",
    )
    made.add_argument(
        "--metrics", nargs="+", default=list(MAIN), metavar="NAME", help=f"of the main table: {', '.join(METRIC)}"
    )
    made.add_argument(
        "--versus", nargs=2, metavar="LABEL", help="the two methods compared client by client (the two best)"
    )
    made.add_argument("--reference", type=Path, default=FOLDER, metavar="DIR", help="CSV files of published numbers")
    return made


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench figures") -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake (argparse exits with 2 by itself)."""
    parsed = parser(program).parse_args(arguments)
    reading = fork_pool.start_in_fork(select, parsed.sweeps, parsed.results, parsed.plugins, parsed.set)
    # imports of drawing code take seconds, so they run while another process reads the sweep files
    from fedbench.report.content import ReportOptions
    from fedbench.report.evidence import gather_selected
    from fedbench.report.tables import terminal
    from fedbench.report.writer import write

    try:
        evidence = gather_selected(reading(), parsed.sweeps, parsed.results)
        versus = tuple(parsed.versus) if parsed.versus else None
        options = ReportOptions(
            tuple(parsed.metrics), "interval" if parsed.intervals else "std", versus, parsed.reference
        )
        written = write(evidence, parsed.out, options)
    except (ReportError, ReferencesError) as error:  # any other exception is a fault of the program
        Console(stderr=True).print(Text(str(error)), soft_wrap=True)
        return 2
    console = Console()
    console.print(Text(written.headline, style="bold"), "")
    terminal.show(console, written.summary, options.metrics, options.spread, written.ranking)
    terminal.tell(console, (*written.legend, *written.footer), written.alarms, (written.page, *written.figures))
    return 0
