"""Runs to numbers to tables: what a cell may say, which cell is best, and the same cells as CSV, Markdown and LaTeX.

Everything here is a pure function of a data frame with one row per run (see `COLUMNS`). The value of a run is its last
round's, and only a run that is done has a value: a cell tells how many of its seeds are done and what became of the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Kind = Literal["share", "bytes", "count", "seconds", "rate"]
Mark = Literal["", "best", "tied"]

LEVEL = 0.05  # of the test that tells a tie from a difference


@dataclass(frozen=True)
class Metric:
    """A column of the records: how it is called in a table, what it means, and whether its largest value wins."""

    name: str
    title: str
    meaning: str
    kind: Kind = "share"
    ranked: bool = False


METRICS = tuple(
    Metric(*fields)
    for fields in (
        ("mean_accuracy", "Mean", "accuracy on a client's own test data, unweighted mean over clients", "share", True),
        ("worst_accuracy", "Worst", "the lowest accuracy of any client", "share", True),
        ("p10_accuracy", "10th pct.", "10th percentile of the clients' accuracies", "share", True),
        ("bottom_decile_accuracy", "Bottom 10 %", "mean accuracy of the worst tenth of the clients", "share", True),
        ("std_accuracy", "Spread", "standard deviation of accuracy over clients (not over seeds)"),
        ("pooled_accuracy", "Pooled", "accuracy over all clients' test samples taken together", "share", True),
        ("global_accuracy", "Global", "accuracy of the global model on the dataset's whole test set", "share", True),
        ("held_out_mean_accuracy", "New, mean", "mean over held-out clients, which never trained", "share", True),
        ("held_out_worst_accuracy", "New, worst", "the lowest accuracy of any held-out client", "share", True),
        ("val_mean_accuracy", "Valid.", "mean over clients of accuracy on validation data (used for selection)"),
        ("train_loss", "Train loss", "mean training loss of the last round's cohort", "rate"),
        ("trained_parameters", "Trained", "parameters that training changes, on one client", "count"),
        ("total_bytes_up", "Up", "bytes sent from clients to server in all rounds", "bytes"),
        ("total_bytes_down", "Down", "bytes sent from server to clients in all rounds", "bytes"),
        ("total_multiply_adds", "MACs", "multiply-adds of the clients' training in all rounds", "count"),
        ("seconds", "Time", "seconds of the whole run (depends on the machine)", "seconds"),
        ("samples_per_second", "Samples/s", "training samples per second (depends on the machine)", "rate"),
        ("peak_memory_bytes", "Memory", "peak memory (depends on the machine)", "bytes"),
    )
)
METRIC = {metric.name: metric for metric in METRICS}
MAIN = ("mean_accuracy", "worst_accuracy")

# state: (letter in a cell that also holds a number, what the legend says)
STATES = {
    "done": ("", "finished: its last round is in the table"),
    "running": ("R", "started and not finished; no number yet"),
    "pending": ("P", "planned and not started"),
    "missing": ("M", "in the sweep, but there is no folder of the run"),
    "failed": ("F", "stopped by an error"),
    "diverged": ("D", "stopped because its loss was no longer finite"),
    "absent": ("–", "no run of this method with this seed was planned in this setting"),
}

# What a frame of runs holds besides the metrics and the provenance: one row per run.
COLUMNS = (
    *("run", "setting", "dataset", "partition", "aggregation", "backbone", "method", "label", "reference", "seed"),
    *("state", "said", "round", "rounds"),
)
PROVENANCE = ("config_hash", "partition_hash", "cohort_hash", "data_hash", "backbone_hash", "commit")


# -- numbers ---------------------------------------------------------------------------------------------------------
def with_last_round(plan: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """`plan` (one row per run: run, setting, label, ..., state, rounds) joined with each run's last record.

    The last record is the one of the highest round, never the best one. Metrics of a run that is not done are dropped,
    hashes stay. A run that says it is done but whose records stop short of its rounds, or hold no mean accuracy, becomes
    "failed" and says so: it has no last round to show.
    """
    taken = ["round", *PROVENANCE, *METRIC]
    if records.empty:
        last = pd.DataFrame(columns=["run", *taken])
    else:
        newest = records.sort_values(["run", "round"], kind="stable").drop_duplicates("run", keep="last")
        last = newest.reindex(columns=["run", *taken])
    runs = plan.merge(last, on="run", how="left", validate="many_to_one")
    for name in ("round", *METRIC):
        runs[name] = pd.to_numeric(runs[name]).astype(float)
    cut = (runs["state"] == "done") & ~(runs["round"] >= runs["rounds"])
    empty = (runs["state"] == "done") & ~cut & ~np.isfinite(runs["mean_accuracy"])
    runs.loc[cut, "said"] = "marked as done, but its records end before its last round"
    runs.loc[empty, "said"] = "marked as done, but its last record holds no mean accuracy"
    runs.loc[cut | empty, "state"] = "failed"
    runs.loc[runs["state"] != "done", list(METRIC)] = math.nan
    return runs


def tied(best: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether `other` cannot be told from `best` by a paired t-test over seeds, two-sided at the 5 % level.

    best, other: [n] values of two methods for the same n seeds, `best` with the larger mean. Seeds are pairs because
    both methods saw the same clients and cohorts under a seed: with differences d = best - other, their mean m and
    their sample standard deviation s, t = m / (s / sqrt(n)) has n - 1 degrees of freedom if the methods are equal.
    They are tied unless t exceeds the 97.5 % quantile of that distribution. One pair tells nothing: never tied then.
    """
    difference = best - other
    n = len(difference)
    if n < 2:
        return False
    error = float(np.std(difference, ddof=1)) / math.sqrt(n)
    if error < 1e-12:  # the same difference under each seed: no noise to hide behind
        return bool(abs(difference.mean()) < 1e-12)
    return bool(difference.mean() / error <= _quantile(n - 1))


@cache
def _quantile(freedom: int) -> float:
    """Of Student's t distribution, which an absolute t of equal methods exceeds with probability LEVEL."""
    from scipy.stats import t as student  # slow to import, and needed here alone

    return float(student.ppf(1 - LEVEL / 2, freedom))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, method and metric: n seeds with a value `of` those any method has there, mean, sample std.

    Shares are in [0, 1], bytes in bytes. std is NaN for one seed. `mark` is "best" for the largest mean among complete
    cells (n = of) of methods that are not references, "tied" where `tied` cannot tell a complete cell from the best.
    The states' columns count runs; `absent` counts seeds without a planned run. Order: as in `runs`, references last.
    """
    runs = runs.drop_duplicates(["setting", "label", "seed"])  # `alarms` tells of the others
    names = list(METRIC)
    cells = runs.groupby(["setting", "label"], sort=False)
    count, mean, std = cells[names].count(), cells[names].mean(), cells[names].std()
    states = runs.groupby(["setting", "label", "state"], sort=False).size().unstack("state", fill_value=0)
    states = states.reindex(columns=[state for state in STATES if state != "absent"], fill_value=0)
    planned = runs.groupby("setting", sort=False)["seed"].nunique()
    first = cells[["dataset", "partition", "backbone", "method", "reference"]].first()
    marks = {setting: _marks(group, int(planned[setting])) for setting, group in runs.groupby("setting", sort=False)}
    parts = []
    for name in names:
        part = first.copy()
        part["metric"] = name
        part["n"] = count[name]
        part["of"] = planned.reindex(part.index.get_level_values("setting")).to_numpy()
        part["mean"], part["std"] = mean[name], std[name]
        part["mark"] = [marks[setting].get((label, name), "") for setting, label in part.index]
        part[list(states.columns)] = states.reindex(part.index)
        part["absent"] = (part["of"] - cells["seed"].nunique()).clip(lower=0)
        parts.append(part)
    table = pd.concat(parts).reset_index()
    rank = {
        "setting": {setting: i for i, setting in enumerate(planned.index)},
        "label": {label: i for i, label in enumerate(labels(runs))},
        "metric": {name: i for i, name in enumerate(names)},
    }
    order = table[list(rank)].apply(lambda column: column.map(rank[column.name]))
    place = order.sort_values(list(rank)).index
    return pd.DataFrame(table.loc[place]).reset_index(drop=True)


def _marks(group: pd.DataFrame, seeds: int) -> dict[tuple[str, str], Mark]:
    """{(label, metric): mark} for the runs of one setting with `seeds` seeds."""
    own = group[~group["reference"].astype(bool)]
    ranked = [metric.name for metric in METRICS if metric.ranked]
    wide = own.set_index(["label", "seed"])[ranked].unstack("seed")
    names = [str(label) for label in wide.index]
    shape = (len(wide), len(ranked), -1)
    values = wide.to_numpy(dtype=float).reshape(shape) if len(wide) else np.empty((0, len(ranked), 0))
    marks: dict[tuple[str, str], Mark] = {}
    if values.shape[2] < seeds:
        return marks
    for i, name in enumerate(ranked):
        complete = np.flatnonzero(np.isfinite(values[:, i]).all(axis=1))
        if not len(complete):
            continue
        means = values[complete, i].mean(axis=1)
        best = values[complete[means.argmax()], i]
        for row, mean in zip(complete, means, strict=True):
            if means.max() - mean < 1e-12:
                marks[names[row], name] = "best"
            elif tied(best, values[row, i]):
                marks[names[row], name] = "tied"
    return marks


def labels(runs: pd.DataFrame) -> list[str]:
    """Every method's label, in order of appearance, references last."""
    seen = runs.drop_duplicates("label")
    last = seen["reference"].astype(bool)
    return [*seen.loc[~last, "label"], *seen.loc[last, "label"]]


# -- what a reader must be told ------------------------------------------------------------------------------------
def alarms(runs: pd.DataFrame) -> list[str]:
    """Sentences about what makes rows incomparable; empty where all is well.

    Within a setting and seed all methods must share the partition and the cohorts; within a setting, the data, the
    backbone's weights and (save for references) the rounds. Two runs of one method under one seed, and finished runs
    without a usable last record, are told as well.
    """
    told = []
    for columns, what, own in (
        (["setting", "seed"], "partition_hash", runs),
        (["setting", "seed", "rounds"], "cohort_hash", runs),
        (["setting"], "data_hash", runs),
        (["setting"], "backbone_hash", runs),
        (["setting"], "rounds", runs[~runs["reference"].astype(bool)]),
    ):
        for place, group in own.dropna(subset=[what]).groupby(columns, sort=False):
            if group[what].nunique() < 2:
                continue
            where = ", seed ".join(str(part) for part in place[:2])
            sides = "; ".join(
                f"{_text(value)}: {_some(list(side['label'].unique()))}"
                for value, side in group.groupby(what, sort=False)
            )
            problem = {
                "partition_hash": "methods were run on different partitions",
                "cohort_hash": "methods trained other cohorts of clients",
                "data_hash": "methods were run on different data",
                "backbone_hash": "methods were run on different backbone weights",
                "rounds": "methods had different budgets (rounds)",
            }[what]
            told.append(f"{where}: {problem}, so their numbers do not compare ({sides}).")
    twice = runs[runs.duplicated(["setting", "label", "seed"], keep=False)]
    for (setting, label, seed), group in twice.groupby(["setting", "label", "seed"], sort=False):
        told.append(
            f"{setting}: {label} has {len(group)} runs with seed {seed}, of which only the first counts: "
            f"{', '.join(group['run'])}."
        )
    broken = runs[(runs["state"] == "failed") & runs["said"].astype(str).str.startswith("marked as done")]
    told += [f"{row.run} is {row.said}; it counts as failed." for row in broken.itertuples()]
    commits = sorted({str(commit) for commit in runs["commit"].dropna()})
    if len(commits) > 1:
        told.append(f"Runs were made by {len(commits)} versions of the code: {', '.join(commits)}.")
    return told


def _some(names: Sequence[str], most: int = 4) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def footer(runs: pd.DataFrame) -> list[str]:
    """Lines on what the tables were made from: runs by state, seeds, commits, rounds, partition check."""
    states = runs["state"].value_counts()
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if state in states.index)
    commits = sorted({str(commit) for commit in runs["commit"].dropna()})
    seeds = sorted(set(runs["seed"]))
    rounds = sorted({int(value) for value in runs["rounds"].dropna()})
    clash = any("different partitions" in alarm for alarm in alarms(runs))
    known = runs.dropna(subset=["partition_hash"])
    pairs = len(known.drop_duplicates(["setting", "seed"]))
    return [
        f"Runs: {len(runs)} ({counts})",
        f"Seeds: {', '.join(str(seed) for seed in seeds)}",
        f"Rounds: {', '.join(map(str, rounds)) or 'unknown'}",
        f"Code: {', '.join(commits) or 'unknown'}",
        f"Partition hashes: {'DIFFERENT within a setting and seed, see the warnings' if clash else 'equal'}"
        f" ({pairs} pairs of setting and seed checked)",
    ]


def legend(table: pd.DataFrame) -> list[str]:
    """What the marks in the cells of `summary`'s `table` mean; only those that occur."""
    seeds = sorted(set(table["of"]))
    reads = ["Accuracy in percent, mean ± sample standard deviation over seeds; always the last round's value."]
    if (table["mark"] != "").any():
        rule = "Bold: largest mean among methods with all seeds done (references and partial cells are not ranked)."
        if max(seeds) > 1:
            rule += (
                f" {TIE}: not distinguishable from it by a paired t-test over seeds"
                f" (two-sided, {LEVEL:.0%} level, no correction for several comparisons);"
                " with few seeds much is tied that is not equal."
            )
        if min(seeds) < 2:
            rule += " Settings with a single seed are not tested."
        reads.append(rule)
    shown = [state for state in STATES if state != "done" and table[state].any()]
    if shown:
        reads.append("(n/m): only n of the setting's m seeds are done; letters say what became of the others.")
    reads += [f"{STATES[state][0]}, {state}: {STATES[state][1]}." for state in shown]
    if table["reference"].astype(bool).any():
        reads.append(f"{REFERENCE}: a reference, not a contestant.")
    return reads


# -- cells ---------------------------------------------------------------------------------------------------------
TIE = "≈"
REFERENCE = "†"
MINUS = "–"


@dataclass(frozen=True)
class Cell:
    """What a table says of one metric of one method in one setting.

    number: "71.2 ± 0.3", or "" where no seed is done; note: "(2/3 D)" beside a number, "diverged" in place of one.
    """

    number: str
    note: str
    mark: Mark = ""


@dataclass(frozen=True)
class Row:
    """A method's line of a table."""

    label: str
    reference: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """A table ready to be written: groups of columns (heading lines, column titles) and rows with a cell for each."""

    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    rows: tuple[Row, ...]


def main_grids(table: pd.DataFrame, settings_each: int = 3) -> list[Grid]:
    """Mean and worst accuracy, methods by settings, in blocks of `settings_each` settings so that a page can hold them."""
    parts = [part for _, part in table[table["metric"].isin(MAIN)].groupby("setting", sort=False)]
    blocks = [pd.concat(parts[i : i + settings_each]) for i in range(0, len(parts), settings_each)]
    order = {label: i for i, label in enumerate(labels(table))}
    grids = [_grid(block, list(block["setting"].unique()), MAIN) for block in blocks]
    return [Grid(grid.groups, tuple(sorted(grid.rows, key=lambda row: order[row.label]))) for grid in grids]


def detail_grid(table: pd.DataFrame, setting: str) -> Grid:
    """Every accuracy of one setting side by side; a metric that no run has is left out."""
    return _grid(table, [setting], [metric.name for metric in METRICS if metric.kind == "share"], trim=True)


def cost_grid(table: pd.DataFrame, setting: str) -> Grid:
    """Parameters, bytes, multiply-adds, time and memory of one setting; means over seeds."""
    return _grid(table, [setting], [metric.name for metric in METRICS if metric.kind != "share"], trim=True)


def split(grid: Grid, columns: int = 5) -> list[Grid]:
    """A grid of one group as several with at most `columns` columns each, for paper."""
    ((heading, titles),) = grid.groups
    return [
        Grid(
            ((heading, titles[i : i + columns]),),
            tuple(Row(row.label, row.reference, row.cells[i : i + columns]) for row in grid.rows),
        )
        for i in range(0, len(titles), columns)
    ]


def _grid(table: pd.DataFrame, settings: Sequence[str], names: Sequence[str], trim: bool = False) -> Grid:
    own = table[table["setting"].isin(settings) & table["metric"].isin(names)]
    if trim:
        filled = set(own.loc[own["n"] > 0, "metric"])
        names = [name for name in names if name in filled] or list(names[:1])
    at = {(row.setting, row.label, row.metric): row for row in own.itertuples()}
    rows = []
    for label, reference in own.drop_duplicates("label")[["label", "reference"]].itertuples(index=False):
        keys = [(setting, label, name) for setting in settings for name in names]
        rows.append(Row(label, bool(reference), tuple(_cell(at.get(key)) for key in keys)))
    rows.sort(key=lambda row: row.reference)
    titles = tuple(METRIC[name].title for name in names)
    return Grid(tuple((tuple(setting.split(" · ")), titles) for setting in settings), tuple(rows))


def _cell(row: object) -> Cell:
    if row is None:
        return Cell("", MINUS)
    counts = {state: int(getattr(row, state)) for state in STATES if state != "done" and getattr(row, state)}
    n, of, done = int(row.n), int(row.of), int(row.done)  # type: ignore[attr-defined]
    if n == 0:
        if done:
            return Cell("", "n/a")  # finished, and this metric does not exist there
        if set(counts) == {"absent"}:
            return Cell("", MINUS)
        if len(counts) == 1 and of in counts.values():
            return Cell("", next(iter(counts)))
        return Cell("", f"(0/{of} {_letters(counts)})")
    number = _number(METRIC[row.metric], float(row.mean), float(row.std))  # type: ignore[attr-defined]
    note = ""
    if n < of:
        note = f"({n}/{of} {_letters(counts)})".replace(" )", ")")
    return Cell(number, note, row.mark)  # type: ignore[attr-defined]


def _letters(counts: dict[str, int]) -> str:
    return "".join(f"{count if count > 1 else ''}{STATES[state][0]}" for state, count in counts.items())


def _number(metric: Metric, mean: float, std: float) -> str:
    if metric.kind == "share":
        return f"{100 * mean:.1f}" + ("" if math.isnan(std) else f" ± {100 * std:.1f}")
    if metric.kind == "seconds":
        return f"{mean:.0f} s" if mean < 600 else f"{mean / 60:.0f} min" if mean < 36000 else f"{mean / 3600:.1f} h"
    if metric.kind == "rate":
        return f"{mean:.3g}" if mean < 1000 else f"{mean:,.0f}"
    return scaled(mean) + ("B" if metric.kind == "bytes" else "")


def scaled(value: float) -> str:
    """`value` with three digits and a decimal prefix: 1234567 -> "1.23 M" (bytes: "1.23 MB", 10^6 bytes)."""
    if abs(value) < 1000:
        return f"{value:.3g} "
    power = min(6, int(math.log10(abs(value) * 1.0005) // 3))  # 999.6 M reads 1.00 G
    return f"{value / 1000**power:#.3g}".rstrip(".") + f" {' kMGTPE'[power]}"


# -- CSV, Markdown, LaTeX --------------------------------------------------------------------------------------------
def to_csv(table: pd.DataFrame) -> str:
    """The whole of `summary` as CSV: full precision, shares in [0, 1], one line per setting, method and metric."""
    return str(table.to_csv(index=False, lineterminator="\n"))


def to_markdown(grids: Iterable[Grid]) -> str:
    """`grids` as pipe tables, one after the other; labels are escaped."""
    return "\n\n".join(_markdown(grid) for grid in grids)


def _markdown(grid: Grid) -> str:
    heads = [markdown(f"{', '.join(lines)}: {title}") for lines, titles in grid.groups for title in titles]
    out = [["Method", *heads], ["---", *("---:" for _ in heads)]]
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
    out.append(" & ".join(["Method", *(latex(title) for _, titles in grid.groups for title in titles)]) + " \\\\")
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


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
