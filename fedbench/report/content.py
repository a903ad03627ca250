"""The content of a report, computed from evidence: tables, comparisons, the answer, sentences. Writes no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from fedbench.report import answer, paper_numbers
from fedbench.report.aggregates import at_equal_budget
from fedbench.report.evidence import Evidence
from fedbench.report.selection import ReportError
from fedbench.report.statistics import LEVEL, NOT_TESTED, Comparison
from fedbench.report.tables import contests, grid, notes, text
from fedbench.report.tables.latex import to_latex
from fedbench.report.tables.metrics import MAIN, metric_names
from fedbench.report.tables.summary import labels, summary

BUDGETS = {"sent": "bytes", "total_multiply_adds": "multiply-adds"}  # {column of the records: words}


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report. metrics: columns of the main table; spread: beside means; versus: two methods to compare
    client by client; references: folder of published numbers."""

    metrics: tuple[str, ...] = MAIN
    spread: grid.Spread = "std"
    versus: tuple[str, str] | None = None
    references: Path = paper_numbers.FOLDER


@dataclass(frozen=True)
class Detail:
    """One setting: all accuracies, all costs, and the comparisons of the best method with every other."""

    setting: str
    accuracy: grid.Grid
    cost: grid.Grid
    pairs: list[Comparison]


class Content:
    """The content of a report about `evidence`. Each part is computed once. Raises ReportError for a wrong option."""

    def __init__(self, evidence: Evidence, options: ReportOptions) -> None:
        self.evidence, self.options = evidence, options
        runs = evidence.runs
        _check(options, runs)
        self.overall = contests.overall(runs)
        self.within = contests.within(runs, evidence.clients)
        self.table = summary(runs)
        self.alarms = [*evidence.notes, *notes.alarms(runs), *notes.tuning_alarms(runs)]
        self.footer = [
            *notes.footer(runs, self.alarms),
            *notes.published_lines(runs, evidence.published),
            *notes.tuning_lines(runs),
        ]
        self.legend = [*notes.legend(self.table, options.spread), *notes.settings(evidence.settings)]

    @cached_property
    def answers(self) -> list[answer.Answer]:
        """The answers for all settings together and for each setting."""
        return answer.answers(self.table, self.within, self.overall)

    @cached_property
    def controls(self) -> list[answer.Control]:
        """The effect of the log class prior alone on each method that was run with and without it."""
        return answer.controls(self.evidence.runs, self.table)

    @cached_property
    def main(self) -> list[grid.Grid]:
        """The main table: methods by settings."""
        chosen = self.options
        return grid.main_grids(self.table, 3, chosen.metrics, chosen.spread, self.overall.ranking)

    @cached_property
    def transposed(self) -> list[grid.Grid]:
        """The main table with settings as rows."""
        return grid.transposed_grids(self.table, names=self.options.metrics, spread=self.options.spread)

    @cached_property
    def details(self) -> list[Detail]:
        """Every setting in full."""
        details = []
        for setting, part in self.table.groupby("setting", sort=False):
            rows = part[(part["metric"] == "mean_accuracy") & ~part["reference"].astype(bool)]
            means = {str(label): float(mean) for label, mean in zip(rows["label"], rows["mean"], strict=True)}
            known = {label: mean for label, mean in means.items() if math.isfinite(mean)}
            pairs = contests.against_best(self.within.get(str(setting), ()), known)
            grids = grid.detail_grid(part, str(setting)), grid.cost_grid(part, str(setting))
            details.append(Detail(str(setting), *grids, pairs))
        return details

    @cached_property
    def budgets(self) -> pd.DataFrame:
        """Accuracy at equal budget: rows of `aggregates.at_equal_budget` with a column "cost"."""
        records = self.evidence.records
        if records.empty:
            return pd.DataFrame(
                columns=["cost", "setting", "label", "reference", "budget", "accuracy", "round", "last"]
            )
        spent = records.assign(sent=records["total_bytes_up"] + records["total_bytes_down"])
        return pd.concat([at_equal_budget(spent, cost).assign(cost=words) for cost, words in BUDGETS.items()])

    @cached_property
    def reported(self) -> pd.DataFrame:
        """Published numbers beside ours."""
        return paper_numbers.beside(self.evidence.runs, paper_numbers.read(self.options.references))

    @cached_property
    def words(self) -> list[str]:
        """The results of the tests over all settings, in sentences."""
        return _words(self.overall)


def _check(options: ReportOptions, runs: pd.DataFrame) -> None:
    legal = metric_names(runs.columns)
    wrong = [name for name in options.metrics if name not in legal]
    if wrong:
        raise ReportError(f"--metrics: unknown {', '.join(wrong)}; legal: {', '.join(legal)}")
    known = labels(runs)
    wrong = [name for name in options.versus or () if name not in known]
    if wrong:
        raise ReportError(f"--versus: no method is labelled {', '.join(wrong)}; legal: {', '.join(known)}")


def _words(overall: contests.Overall) -> list[str]:
    if not overall.pairs:
        return ["A comparison over settings needs two contestants that are done in two settings and all their seeds."]
    said = []
    if (ranking := overall.ranking) is not None:
        ranks = ", ".join(f"{n} {r:.1f}" for n, r in zip(ranking.names, ranking.ranks, strict=True))
        said.append(f"Average ranks in mean accuracy over {text.many(ranking.blocks, 'setting')}: {ranks}.")
    if overall.pairs[0].verdict == NOT_TESTED:
        return [*said, "Differences over all settings are not tested: that needs two seeds."]
    different = [pair for pair in overall.pairs if pair.significant]
    said.append(
        f"{len(different) or 'None'} of {text.many(len(overall.pairs), 'pair')} of contestants "
        f"{'differs' if len(different) < 2 else 'differ'} significantly over {overall.blocks} (settings and seeds as blocks, "
        f"Tukey's test, {LEVEL:.0%} family-wise level)."
    )
    return said


def sentences(content: Content) -> str:
    """statistics.md: the significant differences over all settings, and the best method's comparisons in each."""
    parts = [f"# {text.markdown(content.evidence.title)}: which methods differ", *map(text.markdown, content.words)]
    for pair in content.overall.pairs:
        if pair.significant:
            better = pair if pair.verdict == "better" else pair.reversed
            parts.append("- " + text.markdown(better.sentence("settings")))
    if content.overall.pairs:
        parts.append("Pairs not listed showed no significant difference over settings.")
    for detail in content.details:
        if detail.pairs:
            parts.append(f"## {text.markdown(detail.setting)}")
            parts += ["- " + text.markdown(pair.sentence()) for pair in detail.pairs]
    return "\n\n".join(parts) + "\n"


def files(content: Content) -> dict[str, str]:
    """The tables as files: {name: text}."""
    evidence = content.evidence
    everything: Mapping[str, Sequence[Comparison]] = {**content.within, "(all settings)": content.overall.pairs}
    made = {
        "table.csv": text.to_csv(content.table),
        "runs.csv": text.to_csv(evidence.runs.drop(columns=["config", "tuned", "tuning"], errors="ignore")),
        "comparisons.csv": text.to_csv(contests.as_frame(everything)),
        "statistics.md": sentences(content),
        "table.md": _markdown(content),
        **_latex(content),
    }
    if not content.budgets.empty:
        made["budget.csv"] = text.to_csv(content.budgets)
    if not evidence.trials.empty:
        made["tuning.csv"] = text.to_csv(evidence.trials)
    if not content.reported.empty:
        made["reported.csv"] = text.to_csv(content.reported)
    return made


def _markdown(content: Content) -> str:
    parts = [f"# {text.markdown(content.evidence.title)}", text.markdown(answer.headline(content.answers))]
    parts += [text.to_markdown(content.main)]
    parts += [f"**Warning.** {text.markdown(alarm)}" for alarm in content.alarms]
    parts += ["\n".join(f"- {text.markdown(line)}" for line in (*content.legend, *content.footer))]
    parts += ["## Settings as rows", text.to_markdown(content.transposed), "## Each setting"]
    for detail in content.details:
        parts += [f"### {text.markdown(detail.setting)}", text.to_markdown([detail.accuracy, detail.cost])]
    return "\n\n".join(parts) + "\n"


def _latex(content: Content) -> dict[str, str]:
    caption = " ".join(content.legend)
    lines = "".join(f"% WARNING: {' '.join(alarm.split())}\n" for alarm in content.alarms)
    lines += "".join(f"% {' '.join(line.split())}\n" for line in content.footer)
    more = [f"{len(content.alarms) - 3} more warnings."] if len(content.alarms) > 3 else []
    warning = " WARNING: " + " ".join([*content.alarms[:3], *more]) if content.alarms else ""
    details = "\n".join(
        to_latex([detail.accuracy], f"{detail.setting}. {caption}{warning}", f"detail-{i}")
        + to_latex([detail.cost], f"{detail.setting}. Costs, mean over seeds.", f"costs-{i}")
        for i, detail in enumerate(content.details, 1)
    )
    return {
        "table.tex": lines + to_latex(content.main, caption + warning, "main"),
        "transposed.tex": lines + to_latex(content.transposed, caption + warning, "transposed"),
        "details.tex": lines + details,
    }
