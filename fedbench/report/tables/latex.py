"""A grid as LaTeX that fits the text width of a two-column article. Wide tables are split, not scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedbench.report.tables.grid import Cell, Grid, Row
from fedbench.report.tables.metrics import REFERENCE, TIE
from fedbench.report.tables.text import join_cell, one_line

TEXT_WIDTH = 469.0  # points: \\textwidth of `article` in two columns on letter paper
SEPARATION = 4.0  # points of \\tabcolsep
LABEL = 130.0  # points; the largest width of the column of names. Longer names are broken
HEADING = 150.0  # points; the largest width of the heading of a group of columns
Group = tuple[tuple[str, ...], tuple[str, ...]]  # lines of a heading, titles of columns
LINES = 48  # most lines of tables in one float, so that it fits a page

_ESCAPES = {
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
    "→": r"$\rightarrow$",
    "–": "--",
}
# Points of characters in cmr8, which \\footnotesize is; bold is wider by BOLD at most.
_WIDTHS = {
    char: width
    for width, chars in {
        2.36: "',.:;[]`il!·",
        2.84: "fj- ",
        3.36: "I()trs_",
        3.95: "cez?<>†",
        4.26: '"*/0123456789ago$–',
        4.73: "JkqvxySbdhnpu",
        5.79: "ZLFEP",
        6.41: "BCTwRAHNUVXYD",
        6.68: "K+=@OQG&±≈",
        7.09: "m%#",
        7.79: "M",
    }.items()
    for char in chars
}
WIDEST, BOLD, SMALL = 8.8, 1.19, 0.9  # of other characters; factors of bold and of \\scriptsize


def latex(text: str) -> str:
    """`text`, escaped for LaTeX."""
    return "".join(_ESCAPES.get(char, char) for char in one_line(text))


def width(text: str, bold: bool = False) -> float:
    """An upper bound on the width of `text` at \\footnotesize, in points."""
    points = sum(_WIDTHS.get(char, WIDEST) for char in one_line(text))
    return points * BOLD if bold else points


def to_latex(grids: Sequence[Grid], caption: str, name: str) -> str:
    """`grids` below each other in two-column floats (needs booktabs only); `name` is the label after ``tab:``.

    Grids wider than TEXT_WIDTH are split between columns, and grids longer than a page between floats.
    """
    fitted = [part for grid in grids for part in fit(grid)]
    floats: list[list[Grid]] = [[]]
    for grid in fitted:
        if floats[-1] and sum(map(_lines, [*floats[-1], grid])) > LINES:
            floats.append([])
        floats[-1].append(grid)
    parts = []
    for number, part in enumerate(floats):
        head = latex(caption) if number == 0 else f"Table~\\ref{{tab:{name}}}, continued."
        label = f"\\label{{tab:{name}{f'-{number + 1}' if number else ''}}}"
        body = "\n\\par\\medskip\n".join(map(_tabular, part))
        parts.append(
            "% needs \\usepackage{booktabs}\n\\begin{table*}[t]\n\\centering\\footnotesize"
            f"\\setlength{{\\tabcolsep}}{{{SEPARATION:g}pt}}\n"
            f"\\caption{{{head}}}\n{label}\n\\par\\smallskip\n{body}\n\\end{{table*}}\n"
        )
    return "\n".join(parts)


def fit(grid: Grid, limit: float = TEXT_WIDTH) -> list[Grid]:
    """`grid`, split into grids of at most `limit` points: between groups of columns, then inside a group."""
    return list(_fit(grid, limit))


def _fit(grid: Grid, limit: float) -> Iterator[Grid]:
    start = 0
    groups: list[Group] = []
    columns: list[int] = []
    for heading, titles in grid.groups:
        for first, last in _pieces(grid, (heading, titles), start, limit):
            group = (heading, titles[first - start : last - start])
            added = [*groups, group], [*columns, *range(first, last)]
            if groups and tabular_width(_select(grid, *added)) > limit:
                yield _select(grid, groups, columns)
                added = [group], list(range(first, last))
            groups, columns = added
        start += len(titles)
    yield _select(grid, groups, columns)


def _pieces(grid: Grid, group: Group, start: int, limit: float) -> Iterator[tuple[int, int]]:
    """(first, last) of the columns of a group, cut so that each piece fits."""
    heading, titles = group
    first, end = start, start + len(titles)
    while first < end:
        last = first + 1
        while last < end:
            piece = _select(grid, [(heading, titles[first - start : last + 1 - start])], list(range(first, last + 1)))
            if tabular_width(piece) > limit:
                break
            last += 1
        yield first, last
        first = last


def _select(grid: Grid, groups: Sequence[Group], columns: Sequence[int]) -> Grid:
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in columns)) for row in grid.rows)
    return replace(grid, groups=tuple(groups), rows=rows)


def tabular_width(grid: Grid) -> float:
    """The width of the tabular of `grid` in points."""
    total, start = _label_width(grid), 0
    for heading, titles in grid.groups:
        widths = [width(title) for title in titles]
        for row in grid.rows:
            cells = row.cells[start : start + len(titles)]
            widths = [max(old, _cell_width(cell)) for old, cell in zip(widths, cells, strict=True)]
        cells_width = sum(widths) + 2 * SEPARATION * (len(widths) - 1)
        total += 2 * SEPARATION + max([cells_width, *(min(width(line), HEADING) for line in heading)])
        start += len(titles)
    return total


def _cell_width(cell: Cell) -> float:
    note = (width(cell.note) * SMALL + width(" ")) if cell.number and cell.note else width(cell.note)
    return width(cell.number, cell.mark == "best") + note


def _label_width(grid: Grid) -> float:
    marks = {row.label: width(REFERENCE) * row.reference for row in grid.rows}
    return min(LABEL, max([width(grid.corner), *(width(label) + mark for label, mark in marks.items())])) + 1


def _lines(grid: Grid) -> int:
    broken = sum(1 + int(width(row.label) // LABEL) for row in grid.rows)
    return broken + max((len(heading) for heading, _ in grid.groups), default=0) + 4


def _tabular(grid: Grid) -> str:
    widths = [len(titles) for _, titles in grid.groups]
    depth = max(len(lines) for lines, _ in grid.groups)
    out = ["\\begin{tabular}{@{}l" + "".join(" " + "r" * width for width in widths) + "@{}}", "\\toprule"]
    for level in range(depth):
        texts = [lines[level] if level < len(lines) else "" for lines, _ in grid.groups]
        heads = [
            f"\\multicolumn{{{count}}}{{c}}{{{_within(text, HEADING)}}}"
            for count, text in zip(widths, texts, strict=True)
        ]
        out.append(" & ".join(["", *heads]).strip() + " \\\\")
    ends = np.cumsum(widths) + 1
    out.append(" ".join(f"\\cmidrule(lr){{{e - w + 1}-{e}}}" for w, e in zip(widths, ends.tolist(), strict=True)))
    titles = [latex(title) for _, group in grid.groups for title in group]
    out.append(" & ".join([latex(grid.corner), *titles]) + " \\\\")
    out.append("\\midrule")
    for i, row in enumerate(grid.rows):
        if row.reference and i and not grid.rows[i - 1].reference:
            out.append("\\midrule")
        out.append(" & ".join([_label(row), *map(_cell, row.cells)]) + " \\\\")
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}"])


def _cell(cell: Cell) -> str:
    small = replace(cell, note="") if cell.number else cell
    text = join_cell(small, latex, lambda text: f"\\textbf{{{text}}}", f"\\rlap{{${{}}^{{{latex(TIE)[1:-1]}}}$}}")
    return f"{text} {{\\scriptsize {latex(cell.note)}}}" if cell.number and cell.note else text


def _label(row: Row) -> str:
    mark = f"\\textsuperscript{{{latex(REFERENCE)}}}" if row.reference else ""
    return _within(row.label, LABEL - width(REFERENCE), mark)


def _within(text: str, limit: float, mark: str = "") -> str:
    """`text` on lines of at most `limit` points. Lines may break after punctuation."""
    if width(text) <= limit:
        return latex(text) + mark
    pieces = "".join(latex(char) + "\\allowbreak{}" * (char in "_=.,()/[]") for char in one_line(text))
    return f"\\parbox[t]{{{limit:.0f}pt}}{{\\raggedright {pieces}{mark}\\strut}}"
