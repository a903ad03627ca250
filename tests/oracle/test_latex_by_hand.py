"""The widths, cuts and text of LaTeX tables, from the widths of characters and by hand."""

from __future__ import annotations

import pytest

from fedbench.report.tables import latex
from fedbench.report.tables.grid import Cell, Grid, Row

# Points: d, n, u, v 4.73; o, g and digits 4.26; i 2.36; e 3.95; r, t and parentheses 3.36; M 7.79; h 4.73; a space 2.84.
TWO = Grid(
    groups=((("d",), ("o", "oo")), (("x", "M" * 30), ("o",))),
    rows=(
        Row("dddd", False, (Cell("11", "", "best"), Cell("1", "(2)"), Cell("1", ""))),
        Row("ddd", False, (Cell("1", ""), Cell("1", ""), Cell("2", "", "tied"))),
        Row("oooooooo", True, (Cell("1", ""), Cell("", "diverged"), Cell("3", ""))),
        Row("o", True, (Cell("1", ""), Cell("", "–"), Cell("4", ""))),
    ),
)
NAMES = 8 * 4.26 + 3.95 + 1  # the second row with its dagger; Method has 28.82
FIRST, SECOND = 2 * 4.26 * 1.19, 3 * 4.73 + 2.36 + 2 * 3.95 + 3.36 + 4.26  # bold 11; diverged
WIDTHS = [NAMES + FIRST + 8 + SECOND + 8, NAMES + 150 + 8]  # headings count up to 150


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert latex.tabular_width(TWO) == pytest.approx(sum(WIDTHS) - NAMES)
    assert SECOND > (3.36 + 4.26 + 3.36) * 0.9 + 2.84 + 4.26  # 1 (2), its note in small type
    small = Grid(TWO.groups[:1], TWO.rows[:1])
    assert latex.tabular_width(small) == pytest.approx(28.82 + 1 + FIRST + 8 + 10.98 * 0.9 + 2.84 + 4.26 + 8)
    long = Grid((((), ("o",)),), (Row("o" * 40, False, (Cell("1", ""),)),))
    assert latex.tabular_width(long) == pytest.approx(130 + 1 + 4.26 + 8)


@pytest.mark.parametrize(
    ("limit", "titles"),
    [
        (sum(WIDTHS) - NAMES + 0.01, [[("o", "oo"), ("o",)]]),
        (sum(WIDTHS) - NAMES - 0.01, [[("o", "oo")], [("o",)]]),
        (WIDTHS[0] - 0.01, [[("o",)], [("oo",)], [("o",)]]),
        (1, [[("o",)], [("oo",)], [("o",)]]),
    ],
)
def test_a_wide_table_is_cut_between_groups_and_then_inside_them(
    limit: float, titles: list[list[tuple[str, ...]]]
) -> None:
    parts = latex.fit(TWO, limit)
    assert [[group for _, group in part.groups] for part in parts] == titles
    columns = [cell for part in parts for cell in zip(*(row.cells for row in part.rows), strict=True)]
    assert columns == list(zip(*(row.cells for row in TWO.rows), strict=True))
    headings = {"o": ("d",), "oo": ("d",)}
    for part in parts[:-1]:
        for heading, group in part.groups:
            assert heading in ((headings[group[0]]), ("x", "M" * 30))
    assert parts[-1].groups[-1][0] == ("x", "M" * 30)
    assert all([row.label for row in part.rows] == ["dddd", "ddd", "oooooooo", "o"] for part in parts)


def lines(rows: int, long: int = 0, heading: tuple[str, ...] = ("x",)) -> Grid:
    """A table of `rows` lines, `long` of whose labels are broken once."""
    labels = ["o" * 40] * long + ["o"] * (rows - long)
    return Grid(((heading, ("o",)),), tuple(Row(label, False, (Cell("1", ""),)) for label in labels))


@pytest.mark.parametrize(
    ("grids", "floats"),
    [
        ([lines(11), lines(11), lines(11)], 1),  # (11 + 1 + 4) * 3 = 48 lines
        ([lines(11), lines(11), lines(12)], 2),
        ([lines(11), lines(11), lines(11, long=1)], 2),
        ([lines(11), lines(11), lines(10, long=1)], 1),
        ([lines(11), lines(11), lines(11, heading=("x", "y"))], 2),
        ([lines(60), lines(1)], 2),
    ],
)
def test_a_float_holds_48_lines(grids: list[Grid], floats: int) -> None:
    written = latex.to_latex(grids, "c", "t")
    assert written.count(r"\begin{table*}") == floats
    assert written.count(r"\begin{tabular}") == len(grids)
    assert written.count(r"\label{tab:t-2}") == floats - 1


def test_latex_of_a_table_is_this_text() -> None:
    head = r"""% needs \usepackage{booktabs}
\begin{table*}[t]
\centering\footnotesize\setlength{\tabcolsep}{4pt}
"""
    first = (
        head
        + r"""\caption{50\% of all}
\label{tab:main}
\par\smallskip
\begin{tabular}{@{}l rr r@{}}
\toprule
& \multicolumn{2}{c}{d} & \multicolumn{1}{c}{x} \\
& \multicolumn{2}{c}{} & \multicolumn{1}{c}{\parbox[t]{150pt}{\raggedright HEADING\strut}} \\
\cmidrule(lr){2-3} \cmidrule(lr){4-4}
Method & o & oo & o \\
\midrule
dddd & \textbf{11} & 1 {\scriptsize (2)} & 1 \\
ddd & 1 & 1 & 2\rlap{${}^{\approx}$} \\
\midrule
oooooooo\textsuperscript{$\dagger$} & 1 & diverged & 3 \\
o\textsuperscript{$\dagger$} & 1 & -- & 4 \\
\bottomrule
\end{tabular}
\end{table*}
""".replace("HEADING", "M" * 30)
    )
    second = latex.to_latex([lines(44)], "", "other")
    body = second[second.index(r"\begin{tabular}") :]
    more = head + "\\caption{Table~\\ref{tab:main}, continued.}\n\\label{tab:main-2}\n\\par\\smallskip\n" + body
    assert latex.to_latex([TWO, lines(44)], "50% of all", "main") == first + "\n" + more


def test_a_long_name_is_broken_behind_punctuation() -> None:
    name = "a_b(" + "o" * 40
    pieces = r"a\_\allowbreak{}b(\allowbreak{}" + "o" * 40
    assert latex._label(Row(name, True, ())) == (
        rf"\parbox[t]{{126pt}}{{\raggedright {pieces}\textsuperscript{{$\dagger$}}\strut}}"
    )
    assert latex._label(Row("a_b", False, ())) == r"a\_b"
