"""Arranges cells in grids: methods by settings, settings by methods, all metrics of one setting, costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from fedbench.report.statistics import Ranking
from fedbench.report.tables.metrics import (
    MAIN,
    MINUS,
    REFERENCE,
    STATES,
    Mark,
    Metric,
    metric_names,
    metric_of,
)
from fedbench.report.tables.summary import labels

Spread = Literal["std", "interval"]  # beside a mean: the sample standard deviation, or the mean's 95 % interval


@dataclass(frozen=True)
class Cell:
    """One metric of one method in one setting.

    number: "71.2 ± 0.3", or "" where no seed is done; note: "(2/3 D)" beside a number, "diverged" in place of one;
    value: the key for sorting; place: the (setting, label) of the cell's runs, if the cell belongs to one.
    """

    number: str
    note: str
    mark: Mark = ""
    value: float | None = field(default=None, compare=False)
    place: tuple[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Row:
    """A line of a table: of a method, or of a setting."""

    label: str
    reference: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """A table ready to be written: groups of columns (heading lines, column titles) and rows of cells."""

    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    rows: tuple[Row, ...]
    corner: str = "Method"


def main_grids(
    table: pd.DataFrame,
    settings_each: int = 3,
    names: Sequence[str] = MAIN,
    spread: Spread = "std",
    ranking: Ranking | None = None,
) -> list[Grid]:
    """Methods by settings, in blocks of `settings_each` settings that fit a page; `ranking` comes last."""
    parts = [part for _, part in table[table["metric"].isin(names)].groupby("setting", sort=False)]
    blocks = [pd.concat(parts[i : i + settings_each]) for i in range(0, len(parts), settings_each)]
    order = {label: i for i, label in enumerate(labels(table))}
    grids = [_grid(block, list(block["setting"].unique()), names, spread=spread) for block in blocks]
    grids = [replace(grid, rows=tuple(sorted(grid.rows, key=lambda row: order[row.label]))) for grid in grids]
    return [*grids[:-1], _with_ranks(grids[-1], ranking, order)] if ranking and grids else grids


def _with_ranks(grid: Grid, ranking: Ranking, order: dict[str, int]) -> Grid:
    """`grid` with a last column of average ranks in mean accuracy; ranked methods without a row there get one."""
    width = sum(len(titles) for _, titles in grid.groups)
    missing = [name for name in ranking.names if name not in {row.label for row in grid.rows}]
    rows = [*grid.rows, *(Row(name, False, (Cell("", MINUS),) * width) for name in missing)]
    ranks = dict(zip(ranking.names, ranking.ranks, strict=True))
    last = {name: Cell(f"{value:.1f}", "", value=value) for name, value in ranks.items()}
    rows.sort(key=lambda row: order[row.label])
    heading = ("Average rank", f"{ranking.blocks} settings")
    return replace(
        grid,
        groups=(*grid.groups, (heading, ("Mean",))),
        rows=tuple(replace(row, cells=(*row.cells, last.get(row.label, Cell("", MINUS)))) for row in rows),
    )


def transposed_grids(
    table: pd.DataFrame, methods_each: int = 3, names: Sequence[str] = MAIN, spread: Spread = "std"
) -> list[Grid]:
    """The same cells with settings as rows and methods as columns, in blocks of `methods_each` methods."""
    shown = table[table["metric"].isin(names)]
    at = {(row.setting, row.label, row.metric): row for row in shown.itertuples()}
    references = set(shown.loc[shown["reference"].astype(bool), "label"])
    settings, methods = list(dict.fromkeys(shown["setting"])), labels(shown)
    titles = tuple(metric_of(name).title for name in names)
    grids = []
    for start in range(0, len(methods), methods_each):
        block = methods[start : start + methods_each]
        rows = [
            Row(
                setting,
                False,
                tuple(_cell(at.get((setting, m, n)), spread, (setting, m)) for m in block for n in names),
            )
            for setting in settings
        ]
        heads = tuple(((label + f" {REFERENCE}" * (label in references),), titles) for label in block)
        grids.append(Grid(heads, tuple(rows), "Setting"))
    return grids


def detail_grid(table: pd.DataFrame, setting: str) -> Grid:
    """All accuracies of one setting side by side, without metrics that no run has."""
    return _grid(table, [setting], _names(table, shares=True), trim=True)


def cost_grid(table: pd.DataFrame, setting: str) -> Grid:
    """Parameters, bytes, multiply-adds, time and memory of one setting; means over seeds."""
    return _grid(table, [setting], _names(table, shares=False), trim=True)


def _names(table: pd.DataFrame, shares: bool) -> list[str]:
    """The metrics that are shares, or all others."""
    return [name for name in metric_names(table["metric"].unique()) if (metric_of(name).kind == "share") == shares]


def _grid(
    table: pd.DataFrame, settings: Sequence[str], names: Sequence[str], trim: bool = False, spread: Spread = "std"
) -> Grid:
    cells = table[table["setting"].isin(settings) & table["metric"].isin(names)]
    if trim:
        filled = set(cells.loc[cells["n"] > 0, "metric"])
        names = [name for name in names if name in filled] or list(names[:1])
    at = {(row.setting, row.label, row.metric): row for row in cells.itertuples()}
    rows = []
    for label, reference in cells.drop_duplicates("label")[["label", "reference"]].itertuples(index=False):
        keys = [(setting, label, name) for setting in settings for name in names]
        rows.append(Row(label, bool(reference), tuple(_cell(at.get(key), spread, key[:2]) for key in keys)))
    rows.sort(key=lambda row: row.reference)
    titles = tuple(metric_of(name).title for name in names)
    return Grid(tuple((tuple(setting.split(" · ")), titles) for setting in settings), tuple(rows))


def _cell(row: Any, spread: Spread, place: tuple[str, str]) -> Cell:
    if row is None:
        return Cell("", MINUS, place=place)
    counts = {state: int(getattr(row, state)) for state in STATES if state != "done" and getattr(row, state)}
    n, of, done = int(row.n), int(row.of), int(row.done)
    if n == 0:
        if done:
            return Cell("", "n/a", place=place)  # finished, and this metric does not exist there
        if set(counts) == {"absent"}:
            return Cell("", MINUS, place=place)
        if len(counts) == 1 and of in counts.values():
            return Cell("", next(iter(counts)), place=place)
        return Cell("", f"(0/{of} {_letters(counts)})", place=place)
    around = (float(row.low), float(row.high)) if spread == "interval" else (float(row.std),)
    number = _number(metric_of(row.metric), float(row.mean), around)
    note = ""
    if n < of:
        note = f"({n}/{of} {_letters(counts)})".replace(" )", ")")
    return Cell(number, note, row.mark, float(row.mean), place)


def _letters(counts: dict[str, int]) -> str:
    return "".join(f"{count if count > 1 else ''}{STATES[state][0]}" for state, count in counts.items())


def _number(metric: Metric, mean: float, around: tuple[float, ...]) -> str:
    if metric.kind == "share":
        number, errors = f"{100 * mean:.1f}", [f"{100 * value:.1f}" for value in around]
        if math.isnan(around[0]):
            return number
        return f"{number} ± {errors[0]}" if len(errors) == 1 else f"{number} [{', '.join(errors)}]"
    if metric.kind == "seconds":
        return f"{mean:.0f} s" if mean < 600 else f"{mean / 60:.0f} min" if mean < 36000 else f"{mean / 3600:.1f} h"
    if metric.kind == "rate":
        return f"{mean:.3g}" if mean < 1000 else f"{mean:,.0f}"
    return scaled(mean) + ("B" if metric.kind == "bytes" else "")


def scaled(value: float, digits: int = 3) -> str:
    """`value` with `digits` digits and a decimal prefix: 1234567 -> "1.23 M" (bytes: "1.23 MB", 10^6 bytes)."""
    if abs(value) < 1000:
        return f"{value:.{digits}g} "
    power = min(6, int(math.log10(abs(value) * 1.0005) // 3))  # 999.6 M reads 1.00 G
    return f"{value / 1000**power:#.{digits}g}".rstrip(".") + f" {' kMGTPE'[power]}"
