"""Each format escapes for itself: a label with every special character is printed as it is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from written import summarise, write_run

from fedbench.report.tables.grid import Cell, Grid, Row, main_grids
from fedbench.report.tables.latex import latex, to_latex
from fedbench.report.tables.text import markdown, to_csv, to_markdown

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
    written = to_latex([table("A_1 & B")], "A & B", "t")
    assert r"\caption{A \& B}" in written
    lines = [line.strip() for line in written.splitlines()]
    (first,) = (i for i, line in enumerate(lines) if line.startswith(r"A\_1 \& B &"))
    assert r"& \textbf{71.2 $\pm$ 0.3} & 9.0" in lines[first]
    assert r"$\approx$" in lines[first] or r"{\approx}" in lines[first]
    assert lines[first + 1] == r"\midrule"  # before the first reference
    assert lines[first + 2].startswith(r"plain\textsuperscript{$\dagger$} & 70.0 & diverged")


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


def test_a_page_has_three_settings_side_by_side(tmp_path: Path) -> None:
    for alpha in (0.1, 0.2, 0.3, 0.4):
        write_run(tmp_path, "A", alpha=alpha)
    assert [len(part.groups) for part in main_grids(summarise(tmp_path))] == [3, 1]
