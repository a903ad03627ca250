"""The report as one self-contained HTML file: the answer, tables that sort and filter, figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from fedbench.report import answer
from fedbench.report.content import BUDGETS, Content
from fedbench.report.figures.frame import Drawing
from fedbench.report.page import rows
from fedbench.report.tables.grid import Cell, Grid, Row
from fedbench.report.tables.metrics import METRIC, METRICS, PROVENANCE, REFERENCE, STATES, TIE

UNFINISHED = 200  # rows of the list of runs that are not done; runs.csv has them all
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
    evidence = content.evidence
    runs = evidence.runs
    unfinished = runs[runs["state"] != "done"]
    known = runs.dropna(subset=["partition_hash"])
    hashes = [
        (*place, ", ".join(map(str, group["partition_hash"].unique())), group["partition_hash"].nunique() > 1)
        for place, group in known.groupby(["setting", "seed"], sort=False)
    ]
    weights = runs.dropna(subset=["backbone_hash"]).drop_duplicates(["backbone", "backbone_hash"])
    counts = unfinished["state"].value_counts()
    absent = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts.index)
    settings = {setting: i for i, setting in enumerate(dict.fromkeys(runs["setting"]))}
    names = {label: i for i, label in enumerate(dict.fromkeys(runs["label"]))}

    def behind(cell: Cell, grid: Grid) -> Markup:
        """The attributes of a cell: its value for sorting, its setting for filtering, and its method."""
        value = "" if cell.value is None or not np.isfinite(cell.value) else f' data-v="{cell.value:.9g}"'
        if cell.place is None:
            return Markup(value)  # noqa: S704 - a number
        setting, label = settings.get(cell.place[0], -1), names.get(cell.place[1], -1)
        hides = f' data-in="{setting}"' if grid.corner == "Method" else ""
        return Markup(f'{value} data-s="{setting}" data-l="{label}"{hides}')  # noqa: S704 - numbers

    def inside(group: int, grid: Grid) -> Markup:
        """The setting of a group of columns, so that the page can hide the group with its cells."""
        width = sum(len(titles) for _, titles in grid.groups[:group])
        places = [row.cells[width].place for row in grid.rows]
        of = {settings.get(place[0], -1) for place in places if place}
        return Markup(f' data-in="{of.pop()}"' if grid.corner == "Method" and len(of) == 1 else "")  # noqa: S704 - a number

    def whose(row: Row, grid: Grid) -> Markup:
        """The key by which the page filters a row: the method's name, or the setting's number."""
        if grid.corner == "Method":
            return Markup(' data-method="{}"').format(row.label)
        return Markup(' data-in="{}"').format(settings.get(row.label, -1))

    def column_names(grid: Grid) -> list[str]:
        """The name of each column when a row is shown alone."""
        return [f"{', '.join(lines)}: {title}" for lines, titles in grid.groups for title in titles]

    titles = [METRIC[name].title.lower() for name in content.options.metrics]
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
        data=_data(content, settings, names, results, files or {}),
        absent=absent and f"of {len(runs)} runs {absent}",
        unfinished=unfinished.head(UNFINISHED)[["run", "label", "setting", "seed", "state", "said"]].to_dict("records"),
        more=max(0, len(unfinished) - UNFINISHED),
        hashes=hashes,
        weights=weights[["backbone", "backbone_hash"]].to_dict("records"),
        place=lambda setting: settings.get(setting, -1),
        behind=behind,
        inside=inside,
        whose=whose,
        column_names=column_names,
        metrics=METRICS,
        states=STATES,
        tie=TIE,
        reference=REFERENCE,
    )


def _data(
    content: Content,
    settings: Mapping[str, int],
    names: Mapping[str, int],
    results: str,
    files: Mapping[str, Sequence[str]],
) -> str:
    """The data of the runs for the page's script, as JSON that cannot end its HTML element."""
    curves: dict[str, list[list[float]]] = {}
    evidence = content.evidence
    if not evidence.records.empty:
        records = evidence.records[["run", "round", "mean_accuracy"]].sort_values(["run", "round"], kind="stable")
        records = records[np.isfinite(pd.to_numeric(records["mean_accuracy"]).astype(float))]
        for run, at, share in zip(records["run"], records["round"], records["mean_accuracy"], strict=True):
            curves.setdefault(str(run), []).append([int(at), round(float(share), 4)])
    configs = {text: i for i, text in enumerate(dict.fromkeys(evidence.runs["config"]))}
    known = [name for name in PROVENANCE if name in evidence.runs]
    columns = ["run", "setting", "label", "seed", "state", "said", "config"]
    runs = [
        {
            "n": run, "s": settings[setting], "l": names[label], "d": int(seed), "st": state, "w": said,
            "k": configs[config], "c": curves.get(run, []), "f": list(files.get(run, ())),
            "h": [None if pd.isna(value) else str(value) for value in hashes],
        }
        for (run, setting, label, seed, state, said, config), hashes in zip(
            evidence.runs[columns].itertuples(index=False), evidence.runs[known].itertuples(index=False), strict=True
        )
    ]  # fmt: skip
    whole = {
        "results": results,
        "settings": list(settings),
        "labels": list(names),
        "hashes": known,
        "configs": [_finite(json.loads(text)) for text in configs],
        "runs": runs,
    }
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ")


def _finite(value: Any) -> Any:
    """`value` with words for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
