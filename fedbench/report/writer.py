"""From evidence to a report: writes every table, every figure and the page into one folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedbench.base.storage import write_aside
from fedbench.report import page, published
from fedbench.report.evidence import Evidence
from fedbench.report.figures import catalogue
from fedbench.report.figures.drawing import begin as begin_drawing
from fedbench.report.selection import ReportError
from fedbench.report.statistics import LEVEL, NOT_TESTED, Comparison, Ranking
from fedbench.report.tables import contests, grid, notes, text
from fedbench.report.tables.metrics import MAIN, METRIC
from fedbench.report.tables.summary import labels, summary


@dataclass(frozen=True)
class ReportOptions:
    """What a reader may choose. metrics: columns of the main table; spread: beside means; versus: the methods of the duel."""

    metrics: tuple[str, ...] = MAIN
    spread: grid.Spread = "std"
    versus: tuple[str, str] | None = None
    references: Path = published.FOLDER


@dataclass(frozen=True)
class Written:
    """What `write` made."""

    page: Path
    figures: tuple[Path, ...]
    summary: pd.DataFrame
    ranking: Ranking | None
    alarms: list[str]
    legend: list[str]
    footer: list[str]


def write(evidence: Evidence, out: Path, wishes: ReportOptions = ReportOptions()) -> Written:
    """Write index.html, tables and figures into `out` (made if missing); figures of an earlier report are removed.

    The same evidence gives the same bytes. Raises ReportError where `out` cannot be written or a wish cannot be met.
    """
    runs = evidence.runs
    _check(wishes, runs)
    overall = contests.overall(runs)
    drawn = begin_drawing(catalogue.all_figures(evidence, overall, wishes.versus))
    within = contests.within(runs, evidence.clients)
    table = summary(runs)
    alarms = notes.alarms(runs)
    footer = notes.footer(runs, alarms)
    legend = notes.legend(table, wishes.spread)
    main = grid.main_grids(table, names=wishes.metrics, spread=wishes.spread, ranking=overall.ranking)
    transposed = grid.transposed_grids(table, names=wishes.metrics, spread=wishes.spread)
    details = []
    for setting, part in table.groupby("setting", sort=False):
        mean = part[(part["metric"] == "mean_accuracy") & ~part["reference"].astype(bool)].set_index("label")["mean"]
        pairs = contests.against_best(
            within.get(str(setting), ()), {str(k): float(v) for k, v in mean.dropna().items()}
        )
        detail, cost = grid.detail_grid(part, str(setting)), grid.cost_grid(part, str(setting))
        details.append((str(setting), detail, cost, pairs))
    words = _words(overall)
    beside = published.beside(runs, published.read(wishes.references))
    files = _tables(evidence, table, main, transposed, details, legend, footer, alarms)
    files["comparisons.csv"] = _csv(contests.as_frame({**within, "(all settings)": overall.pairs}))
    files["statistics.md"] = _statistics(evidence.title, words, overall, details)
    if not evidence.trials.empty:
        files["tuning.csv"] = _csv(evidence.trials)
    if not beside.empty:
        files["reported.csv"] = _csv(beside)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name in ("tuning.csv", "reported.csv"):
            (out / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_aside(out / name, content.encode())
        for old in sorted((out / "figures").glob("*")):
            if old.suffix in (".png", ".pdf") and old.name.startswith(catalogue.NAMES):
                old.unlink()
        drawings, paths = drawn(), []
        for drawing in drawings:
            for kind, data in drawing.files.items():
                paths.append(out / "figures" / f"{drawing.name}.{kind}")
                write_aside(paths[-1], data)
        html = page.render(
            page.Content(
                evidence.title, " and ".join(METRIC[name].title.lower() for name in wishes.metrics).capitalize(),
                runs, evidence.records, main, transposed, details, legend, footer, alarms, drawings, words, overall.pairs,
                _tuning(evidence.trials), _budget(evidence.trials), _beside(beside), int((beside["label"] == "").sum()),
                os.path.relpath(evidence.results, out).replace(os.sep, "/"),
                _files(evidence),
            )
        )  # fmt: skip
        write_aside(out / "index.html", html.encode())
    except OSError as error:
        raise ReportError(f"--out {out}: cannot be written ({error.strerror or error}); name a folder") from error
    return Written(out / "index.html", tuple(paths), table, overall.ranking, alarms, legend, footer)


def _check(wishes: ReportOptions, runs: pd.DataFrame) -> None:
    wrong = [name for name in wishes.metrics if name not in METRIC]
    if wrong:
        raise ReportError(f"--metrics: unknown {', '.join(wrong)}; legal: {', '.join(METRIC)}")
    known = labels(runs)
    wrong = [name for name in wishes.versus or () if name not in known]
    if wrong:
        raise ReportError(f"--versus: no method is labelled {', '.join(wrong)}; legal: {', '.join(known)}")


Detail = tuple[str, grid.Grid, grid.Grid, list[Comparison]]


def _tables(
    evidence: Evidence,
    table: pd.DataFrame,
    main: Sequence[grid.Grid],
    transposed: Sequence[grid.Grid],
    details: Sequence[Detail],
    legend: Sequence[str],
    footer: Sequence[str],
    alarms: Sequence[str],
) -> dict[str, str]:
    """The tables as files: name -> content."""
    caption = " ".join(legend)
    remarks = [f"**Warning.** {text.markdown(alarm)}" for alarm in alarms]
    remarks += ["\n".join(f"- {text.markdown(line)}" for line in (*legend, *footer))]
    markdown = [f"# {text.markdown(evidence.title)}", text.to_markdown(main), *remarks, "## Settings as rows"]
    markdown += [text.to_markdown(transposed), "## Each setting"]
    for setting, accuracy, cost, _ in details:
        markdown += [f"### {text.markdown(setting)}", text.to_markdown([accuracy, cost])]
    warned = "".join(f"% WARNING: {' '.join(alarm.split())}\n" for alarm in alarms)
    warned += "".join(f"% {' '.join(line.split())}\n" for line in footer)
    more = [f"{len(alarms) - 3} more warnings."] if len(alarms) > 3 else []
    bold = " WARNING: " + " ".join([*alarms[:3], *more]) if alarms else ""
    runs = evidence.runs.drop(columns=["config", "tuned"])
    return {
        "table.csv": text.to_csv(table),
        "runs.csv": _csv(runs),
        "table.md": "\n\n".join(markdown) + "\n",
        "table.tex": warned + text.to_latex(main, caption + bold, "main"),
        "transposed.tex": warned + text.to_latex(transposed, caption + bold, "transposed"),
        "details.tex": warned
        + "\n".join(
            text.to_latex(grid.split(accuracy), f"{setting}. {caption}{bold}", f"detail-{i}")
            for i, (setting, accuracy, *_) in enumerate(details, 1)
        ),
    }


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))


# -- words and rows for the page ----------------------------------------------------------------------------------------
def _words(overall: contests.Overall) -> list[str]:
    """What the tests over all settings say, in sentences."""
    if not overall.pairs:
        return ["A comparison over settings needs two contestants that are done in two settings and all their seeds."]
    told = []
    if (ranking := overall.ranking) is not None:
        ranks = ", ".join(f"{n} {r:.1f}" for n, r in zip(ranking.names, ranking.ranks, strict=True))
        told.append(f"Average ranks in mean accuracy over {text.many(ranking.blocks, 'setting')}: {ranks}.")
    if overall.pairs[0].verdict == NOT_TESTED:
        return [*told, "Differences over all settings are not tested: that needs two seeds."]
    different = [pair for pair in overall.pairs if pair.significant]
    told.append(
        f"{len(different) or 'None'} of {text.many(len(overall.pairs), 'pair')} of contestants "
        f"{'differs' if len(different) == 1 else 'differ'} significantly over {overall.blocks} (settings and seeds as blocks, "
        f"Tukey's test, {LEVEL:.0%} family-wise level). Pairs not listed showed no significant difference."
    )
    return told


def _statistics(title: str, words: Sequence[str], overall: contests.Overall, details: Sequence[Detail]) -> str:
    """All comparisons with the best method in words, as Markdown."""
    parts = [f"# {text.markdown(title)}: which methods differ", *map(text.markdown, words)]
    for pair in overall.pairs:
        if pair.significant:
            better = pair if pair.verdict == "better" else pair.reversed
            parts.append("- " + text.markdown(better.sentence("settings")))
    for setting, _, _, pairs in details:
        if pairs:
            parts.append(f"## {text.markdown(setting)}")
            parts += ["- " + text.markdown(pair.sentence()) for pair in pairs]
    return "\n\n".join(parts) + "\n"


def _budget(trials: pd.DataFrame) -> str:
    if trials.empty:
        return ""
    each = sorted(set(trials.groupby(["setting", "label"]).size()))
    rounds = sorted({int(value) for value in trials["rounds"].dropna()})
    spent = pd.to_numeric(trials["total_multiply_adds"]).sum()
    return (
        f"{len(trials)} trials, {' or '.join(map(str, each))} for each method in each setting, of "
        f"{' or '.join(map(str, rounds))} rounds, {grid.scaled(float(spent)).strip()} multiply-adds in all. Values were chosen "
        "by mean validation accuracy over clients after the last round, on the first seed; test data were evaluated for the "
        "values chosen only."
    )


def _tuning(trials: pd.DataFrame) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for (setting, label), own in trials.groupby(["setting", "label"], sort=False):
        best = own[own["chosen"]]
        values = json.loads(best["values"].iloc[0]) if len(best) else {}
        ended = int(own["state"].isin(["done", "diverged"]).sum())
        spent = float(pd.to_numeric(own["total_multiply_adds"]).sum())
        rows.append(
            {
                "setting": setting,
                "label": label,
                "trials": len(own),
                "diverged": int((own["state"] == "diverged").sum()),
                "chosen": ", ".join(f"{k} = {v}" for k, v in values.items())
                or f"undecided: {ended} of {len(own)} ended",
                "validation": f"{100 * float(best['validation'].iloc[0]):.1f}" if len(best) else "",
                "cost": grid.scaled(spent).strip(),
            }
        )
    return rows


def _beside(frame: pd.DataFrame) -> list[Mapping[str, Any]]:
    return [
        {
            "source": f"{row.source}, {row.where}",
            "setting": row.setting,
            "method": f"{row.method} ({METRIC[str(row.metric)].title})",
            "reported": f"{row.reported:.2f}",
            "here": "–" if math.isnan(row.here) else f"{row.here:.1f}" + (f" ± {row.std:.1f}" if row.seeds > 1 else ""),  # type: ignore[operator,arg-type]
            "difference": "" if math.isnan(row.difference) else f"{row.difference:+.1f}",  # type: ignore[arg-type]
            "protocol": row.protocol or "as far as stated, none",
        }
        for row in frame[frame["label"] != ""].itertuples()
    ]


def _files(evidence: Evidence) -> dict[str, list[str]]:
    """Which of the files that the page links to each run has, by one look into its folder."""
    found = {}
    for run in evidence.runs["run"]:
        try:
            names = set(os.listdir(evidence.results / run))  # noqa: PTH208 - one look for ten thousand runs
        except OSError:
            continue
        found[str(run)] = [name for name in page.FILES if name in names]
    return found
