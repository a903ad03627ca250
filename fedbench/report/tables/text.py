"""A grid as CSV, Markdown and LaTeX that print what they were given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from fedbench.report.tables.grid import Cell, Grid
from fedbench.report.tables.metrics import REFERENCE, TIE


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of one


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
    """`grids` as pipe tables, one after the other; labels are escaped."""
    return "\n\n".join(_markdown(grid) for grid in grids)


def _markdown(grid: Grid) -> str:
    heads = [markdown(f"{', '.join(lines)}: {title}") for lines, titles in grid.groups for title in titles]
    out = [[grid.corner, *heads], ["---", *("---:" for _ in heads)]]
    for row in grid.rows:
        cells = [_joined(cell, markdown, lambda text: f"**{text}**", f" {TIE}") for cell in row.cells]
        out.append([markdown(row.label) + (f" {REFERENCE}" if row.reference else ""), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in out)


def _joined(cell: Cell, escape: Callable[[str], str], bold: Callable[[str], str], tie: str) -> str:
    number = escape(cell.number)
    if cell.mark == "best":
        number = bold(number)
    note = escape(cell.note)
    if cell.number and note and escape is latex:
        note = f"{{\\scriptsize {note}}}"  # else one partial cell makes its whole column wide
    parts = [number + (tie if cell.mark == "tied" else ""), note]
    return " ".join(part for part in parts if part)


def to_latex(grids: Sequence[Grid], caption: str, name: str) -> str:
    """`grids` below one another in a two-column float (needs booktabs only); `name` is the label behind ``tab:``."""
    body = "\n\\par\\medskip\n".join(_tabular(grid) for grid in grids)
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table*}[t]\n\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}\n"
        f"\\caption{{{latex(caption)}}}\n\\label{{tab:{name}}}\n\\par\\smallskip\n{body}\n\\end{{table*}}\n"
    )


def _tabular(grid: Grid) -> str:
    widths = [len(titles) for _, titles in grid.groups]
    depth = max(len(lines) for lines, _ in grid.groups)
    out = ["\\begin{tabular}{@{}l" + "".join(" " + "r" * width for width in widths) + "@{}}", "\\toprule"]
    for level in range(depth):
        texts = [lines[level] if level < len(lines) else "" for lines, _ in grid.groups]
        heads = [f"\\multicolumn{{{width}}}{{c}}{{{latex(text)}}}" for width, text in zip(widths, texts, strict=True)]
        out.append(" & ".join(["", *heads]).strip() + " \\\\")
    ends = np.cumsum(widths) + 1
    out.append(" ".join(f"\\cmidrule(lr){{{e - w + 1}-{e}}}" for w, e in zip(widths, ends.tolist(), strict=True)))
    out.append(
        " & ".join([latex(grid.corner), *(latex(title) for _, titles in grid.groups for title in titles)]) + " \\\\"
    )
    out.append("\\midrule")
    for i, row in enumerate(grid.rows):
        if row.reference and i and not grid.rows[i - 1].reference:
            out.append("\\midrule")
        cells = [
            _joined(cell, latex, lambda text: f"\\textbf{{{text}}}", f"\\rlap{{${{}}^{{{latex(TIE)[1:-1]}}}$}}")
            for cell in row.cells
        ]
        mark = f"\\textsuperscript{{{latex(REFERENCE)}}}" if row.reference else ""
        out.append(" & ".join([latex(row.label) + mark, *cells]) + " \\\\")
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}"])


_LATEX = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "†": r"$\dagger$",
    "·": r"$\cdot$",
    "–": "--",
}
_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{char: f"\\{char}" for char in "\\`*_{}[]#|~$"}}


def latex(text: str) -> str:
    """`text` as LaTeX that prints it."""
    return "".join(_LATEX.get(char, char) for char in _one_line(text))


def markdown(text: str) -> str:
    """`text` as Markdown that prints it, also inside a pipe table."""
    return "".join(_MARKDOWN.get(char, char) for char in _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
