"""The report as one self-contained HTML file: the answer, tables that sort and filter, figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from fedbench.report import answer
from fedbench.report.content import BUDGETS, Content
from fedbench.report.figures.frame import Drawing
from fedbench.report.page import rows, run_data
from fedbench.report.page.links import CellLinks
from fedbench.report.tables.metrics import REFERENCE, STATES, TIE, metric_names, metric_of

FILES = ("run.yaml", "records.jsonl", "clients.parquet", "env.json", "log.txt")  # of a run, which the page links to
HERE = Path(__file__).parent


def headline(content: Content) -> str:
    """The page's headline."""
    return answer.headline(content.answers)


def render(
    content: Content, figures: Sequence[Drawing], results: str = ".", files: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The page; every text is escaped.

    results: the results folder, relative to the page; files: which of FILES each run has.
    """
    evidence, runs = content.evidence, content.evidence.runs
    links = CellLinks.of(runs)
    titles = [metric_of(name).title.lower() for name in content.options.metrics]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.from_string((HERE / "page.html").read_text()).render(
        title=evidence.title,
        heading=f"{' and '.join(titles).capitalize()} accuracy",
        content=content,
        headline=headline(content),
        below=answer.below_control(content.table, content.controls),
        seeds=sorted(set(runs["seed"])),
        figures=figures,
        tuning=rows.tuning(evidence.trials),
        tuning_budget=rows.tuning_budget(evidence.trials),
        reported=rows.reported(content.reported),
        unmatched=int((content.reported["label"] == "").sum()),
        budgets=rows.budgets(content.budgets),
        costs=list(BUDGETS.values()),
        style=(HERE / "page.css").read_text(),
        script=(HERE / "page.js").read_text(),
        data=run_data.as_json(evidence, links, results, files or {}),
        **rows.unfinished(runs),
        hashes=rows.partition_hashes(runs),
        weights=rows.weights(runs),
        links=links,
        metrics=[metric_of(name) for name in metric_names(evidence.runs.columns)],
        states=STATES,
        tie=TIE,
        reference=REFERENCE,
    )
