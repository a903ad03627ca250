"""Writes a report: all tables, all figures and the page, to one folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedbench.base.storage import write_atomically
from fedbench.report import page
from fedbench.report.content import Content, ReportOptions, files
from fedbench.report.evidence import Evidence
from fedbench.report.figures import report_figures
from fedbench.report.figures.frame import Drawing
from fedbench.report.selection import ReportError
from fedbench.report.statistics import Ranking

DEFAULTS = ReportOptions()
PAGE = "index.html"
SOMETIMES = ("budget.csv", "tuning.csv", "reported.csv")  # files that only some reports have


@dataclass(frozen=True)
class Written:
    """The files that `write` made, and its messages."""

    page: Path
    figures: tuple[Path, ...]
    summary: pd.DataFrame
    ranking: Ranking | None
    alarms: list[str]
    legend: list[str]
    footer: list[str]
    headline: str


def write(evidence: Evidence, out: Path, options: ReportOptions = DEFAULTS) -> Written:
    """Write index.html, tables and figures into `out` (made if missing); figures of an earlier report are removed.

    The same evidence gives the same bytes. Raises ReportError if `out` cannot be written or an option is wrong.
    """
    content = Content(evidence, options)
    catalogue = report_figures.all_figures(evidence, content.within, content.overall, options.versus)
    finish_drawing = catalogue.start_drawing()  # other processes draw while this one computes the tables
    tables = files(content)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        _write_tables(out, tables)
        drawings = finish_drawing()
        figures = _write_figures(out / "figures", drawings)
        _write_page(out, content, drawings)
    except OSError as error:
        raise ReportError(f"--out {out}: cannot be written ({error.strerror or error}); name a folder") from error
    return Written(
        page=out / PAGE,
        figures=figures,
        summary=content.table,
        ranking=content.overall.ranking,
        alarms=content.alarms,
        legend=content.legend,
        footer=content.footer,
        headline=page.headline(content),
    )


def _write_tables(out: Path, tables: dict[str, str]) -> None:
    """Write the tables {name: text}, and remove those that only an earlier report had."""
    for name in SOMETIMES:
        (out / name).unlink(missing_ok=True)
    for name, text in tables.items():
        write_atomically(out / name, text.encode())


def _write_page(out: Path, content: Content, drawings: list[Drawing]) -> None:
    results = os.path.relpath(content.evidence.results, out).replace(os.sep, "/")
    html = page.render(content, drawings, results, _files_of_runs(content.evidence))
    write_atomically(out / PAGE, html.encode())


def _write_figures(folder: Path, drawings: list[Drawing]) -> tuple[Path, ...]:
    """Write the figures, and remove those of an earlier report. Returns the paths."""
    for old in sorted(folder.glob("*")):
        if old.suffix in (".svg", ".png", ".pdf") and old.name.startswith(report_figures.NAMES):
            old.unlink()
    paths = []
    for drawing in drawings:
        for kind, data in drawing.files.items():
            paths.append(folder / f"{drawing.name}.{kind}")
            write_atomically(paths[-1], data)
    return tuple(paths)


def _files_of_runs(evidence: Evidence) -> dict[str, list[str]]:
    """The files of each run that the page links to, from one listing of its folder."""
    by_run = {}
    for run in evidence.runs["run"]:
        try:
            names = set(os.listdir(evidence.results / run))  # noqa: PTH208 - one look for ten thousand runs
        except OSError:
            continue
        by_run[str(run)] = [name for name in page.FILES if name in names]
    return by_run
