"""Each format escapes for itself: a label with every special character is printed as it is."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from fedbench.report.tables.grid import Cell, Grid, Row
from fedbench.report.tables.text import latex, markdown, to_csv, to_latex, to_markdown

LABEL = r"a&b%c$d#e_f{g}h~i^j\k<l>m|n*o`p[q]r"
LATEX = (
    r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k\textless{}l\textgreater{}m\textbar{}"
    "n*o`p[q]r"
)
MARKDOWN = r"a&amp;b%c\$d\#e\_f\{g\}h\~i^j\\k&lt;l&gt;m\|n\*o\`p\[q\]r"


def table(label: str) -> Grid:
    """Two methods, one of them a reference; the best, a tied, a partial and a missing cell."""
    rows = (
        Row(label, False, (Cell("71.2 ± 0.3", "", "best"), Cell("9.0", "(2/3 D)", "tied"))),
        Row("plain", True, (Cell("70.0", "", ""), Cell("", "diverged"))),
    )
    return Grid(((("x_1", "50 %"), ("Mean", "Worst")),), rows)


def test_latex_prints_the_label() -> None:
    assert latex(LABEL) == LATEX
    lines = to_latex([table(LABEL)], "A & B", "t").splitlines()
    assert lines[3] == r"\caption{A \& B}"
    assert r"& \multicolumn{2}{c}{x\_1} \\" in lines
    first = LATEX + r" & \textbf{71.2 $\pm$ 0.3} & 9.0\rlap{${}^{\approx}$} {\scriptsize (2/3 D)} \\"
    at = lines.index(first)  # a rule before the first reference
    assert lines[at + 1 : at + 3] == [r"\midrule", r"plain\textsuperscript{$\dagger$} & 70.0 & diverged \\"]


def test_markdown_prints_the_label() -> None:
    assert markdown(LABEL) == MARKDOWN
    assert to_markdown([table(LABEL)]).splitlines() == [
        r"| Method | x\_1, 50 %: Mean | x\_1, 50 %: Worst |",
        "| --- | ---: | ---: |",
        f"| {MARKDOWN} | **71.2 ± 0.3** | 9.0 ≈ (2/3 D) |",
        "| plain † | 70.0 | diverged |",
    ]


@pytest.mark.parametrize("label", [LABEL, 'comma, "quote"', "two\nlines"])
def test_csv_reads_back_without_any_escape_of_another_format(label: str) -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv(pd.DataFrame([{"label": label, "value": 0.1 + 0.2}])), newline=""))
    assert row == {"label": label, "value": "0.30000000000000004"}


def test_a_label_stays_on_its_line() -> None:
    assert latex("a\nb\t c") == markdown("a\nb\t c") == "a b c"
