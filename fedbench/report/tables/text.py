"""A grid as CSV and Markdown, with escaped texts. See `latex` for LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pandas as pd

from fedbench.report.tables.grid import Cell, Grid
from fedbench.report.tables.metrics import REFERENCE, TIE

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # characters at which a spreadsheet starts a formula


def to_csv(frame: pd.DataFrame) -> str:
    """`frame` as CSV in full precision. A text that a spreadsheet would compute, such as "=1+1", gets a leading quote."""
    texts = frame.select_dtypes(exclude="number").columns
    safe = frame.assign(**{name: frame[name].map(_inert) for name in texts})
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA and value else value


def many(number: int, what: str) -> str:
    """ "1 pair", "3 pairs"."""
    return f"{number} {what}{'s' * (number != 1)}"


def to_markdown(grids: Iterable[Grid]) -> str:
    """`grids` as consecutive pipe tables, with escaped labels."""
    return "\n\n".join(_markdown(grid) for grid in grids)


def _markdown(grid: Grid) -> str:
    heads = [markdown(f"{', '.join(lines)}: {title}") for lines, titles in grid.groups for title in titles]
    out = [[grid.corner, *heads], ["---", *("---:" for _ in heads)]]
    for row in grid.rows:
        cells = [join_cell(cell, markdown, lambda text: f"**{text}**", f" {TIE}") for cell in row.cells]
        out.append([markdown(row.label) + (f" {REFERENCE}" if row.reference else ""), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in out)


def join_cell(cell: Cell, escape: Callable[[str], str], bold: Callable[[str], str], tie: str) -> str:
    """A cell in a format: number, mark and note."""
    number = escape(cell.number)
    if cell.mark == "best":
        number = bold(number)
    parts = [number + (tie if cell.mark == "tied" else ""), escape(cell.note)]
    return " ".join(part for part in parts if part)


_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{char: f"\\{char}" for char in "\\`*_{}[]#|~$"}}


def markdown(text: str) -> str:
    """`text`, escaped for Markdown, also inside a pipe table."""
    return "".join(_MARKDOWN.get(char, char) for char in one_line(text))


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return re.sub(r"\s+", " ", text)
