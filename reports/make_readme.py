"""Writes the demo's table and picture into README.md: `python reports/make_readme.py`, after `make demo`."""

from __future__ import annotations

import shutil
import sys
from itertools import dropwhile, takewhile
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
OUT = HOME / "reports" / "out"
# Notes that the page and the sweep file hold.
LEFT_OUT = ("- Settings:", "- Partition hashes:", "- Runs:", "- Rounds:", "- Seeds:")
RANK = "Average rank"  # the last column of a table over several settings, not of the README's
BEGIN, END = "<!-- made by `make readme` -->", "<!-- end -->"


def demo_table(report: str) -> str:
    """The first table of the report's table.md without its ranks, and the main notes below it.

    Raises ValueError if there is none.
    """
    lines = iter(report.splitlines())
    table = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines)))
    notes = [line for line in takewhile(lambda line: line.startswith("- "), lines) if not line.startswith(LEFT_OUT)]
    if table and RANK in table[0]:
        table = [line.rsplit(" |", 2)[0] + " |" for line in table]
    if not table or not notes:
        raise ValueError("the report has no table with notes")
    return "\n".join([*table, "", *notes])


def with_table(page: str, table: str) -> str:
    """`page` with `table` between its two marks. Raises ValueError if it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    """Rewrite README.md and docs/demo_rounds.svg from the report in reports/out."""
    page = HOME / "README.md"
    page.write_text(with_table(page.read_text(), demo_table((OUT / "table.md").read_text())))
    shutil.copyfile(OUT / "figures" / "rounds.svg", HOME / "docs" / "demo_rounds.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
