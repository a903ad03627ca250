"""`fedbench leaderboard`: makes the static page of all published runs."""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from pathlib import Path

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.storage import write_atomically
from fedbench.cli.output import say, warn

DONE, STALE, MISTAKE = 0, 1, 2

EPILOG = """\
examples:
  %(prog)s
  %(prog)s results/published/quickstart.parquet mine.parquet --out board/
  %(prog)s --check
"""


def parser(program: str = "fedbench leaderboard") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Make a page with a sortable table for each experiment from files of published runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "files", nargs="*", type=Path, metavar="FILE.parquet", help="files of `fedbench publish` (results/published/*)"
    )
    options.add_argument(
        "--out",
        type=Path,
        default=Path("docs/leaderboard"),
        metavar="DIR",
        help="where to write index.html (docs/leaderboard)",
    )
    options.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if the page was made from other files"
    )
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench leaderboard") -> int:
    """Write the page, and return the exit code."""
    options = parser(program).parse_args(arguments)
    from fedbench.report import leaderboard  # imports take a second
    from fedbench.report.published_rows import PUBLISHED
    from fedbench.report.selection import ReportError

    files = options.files or sorted(PUBLISHED.glob("*.parquet"))
    page = options.out / "index.html"
    if not files:
        warn(f"error: {PUBLISHED} holds no parquet files; name a file, or make one: fedbench publish")
        return MISTAKE
    try:
        if options.check:
            return _check(page, {path.name: leaderboard.checksum(path) for path in files})
        text = leaderboard.render(files)
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomically(page, text.encode())
    except ReportError as error:
        warn(f"error: {error}")
        return MISTAKE
    except OSError as error:
        warn(f"error: {error.filename or page}: {error.strerror or error}")
        return MISTAKE
    tables = text.count("<section id=")
    say(f"{page}: {tables} table{'s' * (tables != 1)} of {len(files)} file{'s' * (len(files) != 1)}")
    return DONE


def _check(page: Path, checksums: dict[str, str]) -> int:
    """Whether `page` names every file with its checksum. Raises OSError."""
    text = page.read_text()
    stale = [n for n, digest in checksums.items() if html.escape(n) not in text or digest not in text]
    if stale:
        warn(f"{page} was not made from the present {', '.join(stale)}: fedbench leaderboard")
    return STALE if stale else DONE
