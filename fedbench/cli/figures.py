"""The command line of reports: makes all tables and figures, and prints the main table."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedbench.base import fork_pool
from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.cli.options import add_plugins, add_settings
from fedbench.report.paper_numbers import FOLDER, ReferencesError
from fedbench.report.published_rows import FilledResults, filled
from fedbench.report.selection import ReportError, select
from fedbench.report.tables.metrics import MAIN, METRIC

EPILOG = """\
examples:
  %(prog)s sweeps/quickstart.yaml
  %(prog)s sweeps/quickstart.yaml --published
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
    add_plugins(made)
    add_settings(made)
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
    made.add_argument(
        "--published",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="fill rows that were not run here from files of `fedbench publish` (all of results/published)",
    )
    made.add_argument("--reference", type=Path, default=FOLDER, metavar="DIR", help="CSV files of published numbers")
    return made


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench figures") -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake (argparse exits with 2 by itself)."""
    parsed = parser(program).parse_args(arguments)
    try:
        with _rare_garbage_collection():
            if parsed.published is None:
                return _report(parsed)
            with filled(parsed.results, parsed.published) as results:
                return _report(parsed, results)
    except (ReportError, ReferencesError) as error:  # any other exception is a fault of the program
        Console(stderr=True).print(Text(str(error)), soft_wrap=True)
        return 2


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Collect garbage only after many new objects: imports make many, and collecting takes a fifth of their time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _report(parsed: argparse.Namespace, published: FilledResults | None = None) -> int:
    """Make the report, of `published` in place of the results folder if there is one; returns the exit code 0.

    Raises ReportError and ReferencesError.
    """
    folder = published.path if published else parsed.results
    reading = fork_pool.start_in_fork(select, parsed.sweeps, folder, parsed.plugins, parsed.settings)
    # imports of drawing code take seconds, so they run while another process reads the sweep files
    from fedbench.report.content import ReportOptions
    from fedbench.report.evidence import gather_selected
    from fedbench.report.tables import terminal
    from fedbench.report.writer import write

    selection = published.checked(reading()) if published else reading()
    evidence = gather_selected(selection, parsed.sweeps, parsed.results)
    evidence = published.marked(evidence) if published else evidence
    versus = tuple(parsed.versus) if parsed.versus else None
    options = ReportOptions(tuple(parsed.metrics), "interval" if parsed.intervals else "std", versus, parsed.reference)
    written = write(evidence, parsed.out, options)
    console = Console()
    console.print(Text(written.headline, style="bold"), "")
    terminal.show(console, written.summary, options.metrics, options.spread, written.ranking)
    terminal.tell(console, (*written.legend, *written.footer), written.alarms, (written.page, *written.figures))
    return 0
