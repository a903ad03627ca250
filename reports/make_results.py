"""Writes the tables of docs/results.md, and docs/leaderboard, from results/published: `python reports/make_results.py`."""

from __future__ import annotations

import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from fedbench.base.storage import write_atomically  # noqa: E402 - the package is beside this script
from fedbench.report import leaderboard  # noqa: E402

PAGE, BOARD = HOME / "docs" / "results.md", HOME / "docs" / "leaderboard" / "index.html"
BEGIN, END = "<!-- made by `make results` from results/published -->", "<!-- end of what `make results` makes -->"


def with_tables(page: str, tables: str) -> str:
    """`page` with `tables` between its two marks. Raises ValueError if it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> int:
    """Rewrite both pages."""
    files = sorted((HOME / "results" / "published").glob("*.parquet"))
    write_atomically(BOARD, leaderboard.render(files).encode())
    write_atomically(PAGE, with_tables(PAGE.read_text(), leaderboard.markdown(files)).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
