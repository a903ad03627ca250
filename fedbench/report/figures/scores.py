"""Methods compared at the end of their runs: worst client against mean, cost against accuracy, and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedbench.report.figures.catalogue import FigureCatalogue, FigureData, by_setting, having
from fedbench.report.figures.frame import PANELS, cost_axis, crosses, percent, plain, wrap
from fedbench.report.figures.style import WIDTH, Looks
from fedbench.report.statistics import Ranking

# {column of the runs: title of its axis}
COSTS = {
    "sent": "bytes sent, up + down",
    "total_multiply_adds": "multiply-adds of clients",
    "seconds": "seconds of the run",
}
CHARACTER = 0.05  # inches of a character in the heat map's column heads
LETTER, AXIS = 0.058, 1.3  # inches of a character beside the ranks, and of the shortest axis
RANK = 6  # characters of a rank with the space around it


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """Add worst against mean, cost against accuracy, the heat map, and the ranks."""
    look = catalogue.look
    parts = by_setting(data.done)
    both = by_setting(data.done.dropna(subset=["worst_accuracy"]))
    catalogue.add(
        "worst",
        "Worst client against mean",
        "Accuracy of the worst client against the mean over clients at the last round; mean over the seeds that are done, "
        "bars ± one sample standard deviation. Up and to the right is better. Grey: the Pareto front, on which no method is "
        "worse in both than another method.",
        "no run is done",
        panel=lambda axes, setting: worst(axes, both[setting], look),
        x="mean accuracy (%)",
        y="worst client's accuracy (%)",
        lines=False,
        **having(both, data.settings),
    )
    catalogue.add(
        "cost",
        "Cost against accuracy",
        "Mean accuracy over clients at the last round against the cost of all rounds; means over the seeds that are done, bars "
        "± one sample standard deviation. Axes start at zero, or are logarithmic. Seconds depend on the machine.",
        "no run is done",
        [(setting, column) for setting in data.settings if setting in parts for column in COSTS],
        lambda axes, key: cost(axes, parts[key[0]], key[1], look),
        shown=lambda key: list(parts[key[0]]["label"].unique()),
        y="mean accuracy (%)",
        lines=False,
        heading=lambda key: key[0],
    )
    values = heat_values(data.done, data.names, data.settings)
    few = [values.iloc[:, start : start + PANELS] for start in range(0, min(values.shape[1], catalogue.most), PANELS)]
    for i, part in enumerate(few):
        catalogue.add_whole(
            "heat" + f"-{i + 1}" * (i > 0),
            "Methods by settings",
            "Mean accuracy over clients in percent at the last round, mean over the seeds that are done; blank: none is.",
            "",
            partial(heat, part.rename(index=catalogue.shown_as), ""),
        )
    ranking = data.overall.ranking
    catalogue.add_whole(
        "ranks",
        "Average ranks",
        f"Average rank in mean accuracy over {ranking.blocks} settings; 1 is best. Bars join methods among which no pair "
        "differs significantly over settings and seeds. References and methods that are not done everywhere are left out."
        if ranking
        else "",
        "it needs two contestants that are done in two settings and all their seeds",
        None if ranking is None else partial(average_ranks, ranking, look),
    )


def worst(axes: Axes, runs: pd.DataFrame, look: Looks) -> None:
    """A point per method: mean accuracy (across) and the worst client's (up), error bars over seeds, and the Pareto front."""
    mean = crosses(axes, runs, "mean_accuracy", "worst_accuracy", look)
    if len(mean):
        front = mean[pareto(mean)]
        front = front[np.argsort(front[:, 0])]
        axes.step(front[:, 0], front[:, 1], where="pre", color="#aaaaaa", linewidth=0.8, zorder=1)
    percent(axes.xaxis)
    percent(axes.yaxis)


def pareto(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of points [n, 2] no other point exceeds in one coordinate without being smaller in the other."""
    more = np.asarray(points[None] > points[:, None])
    over = np.asarray(points[None] >= points[:, None]).all(2) & more.any(2)
    return np.asarray(~np.asarray(over).any(1))


def cost(axes: Axes, runs: pd.DataFrame, column: str, look: Looks) -> None:
    """A point per method: the cost of all rounds (`column` of COSTS) across, mean accuracy up, bars over seeds."""
    points = crosses(axes, runs, column, "mean_accuracy", look, across=False)
    cost_axis(axes, points[:, 0].tolist(), "B" if column == "sent" else "")
    axes.set_xlabel(COSTS[column])
    percent(axes.yaxis)


def heat(values: pd.DataFrame, title: str) -> Figure:
    """Methods (rows) by settings (columns), mean accuracy in percent; blank where no seed is done."""
    rows, columns = values.shape
    parts = [str(name).split(" · ") for name in values.columns]
    heads = ["\n".join(wrap(part, 14) for part in of) for of in parts]
    left = 0.06 * max(len(str(label)) for label in values.index)
    each = max(0.75, 0.1 + CHARACTER * max(len(line) for head in heads for line in head.split("\n")))
    below, upright = 0.5, left + 0.8 + each * columns > WIDTH
    if upright:
        heads = ["\n".join(of) for of in parts]
        below, each = CHARACTER * max(len(part) for of in parts for part in of), 0.75
    width = min(WIDTH, left + 0.8 + each * columns)
    figure, (axes,) = plain(width, 0.35 + max(1.2, 0.19 * rows) + below)  # the title of the scale needs some height
    shown = axes.pcolormesh(values.to_numpy(dtype=float), cmap="cividis")
    middle = np.nanmean(values.to_numpy(dtype=float))
    for i, j in np.ndindex(rows, columns):
        value = float(values.iloc[i, j])  # type: ignore[arg-type]
        if np.isfinite(value):
            light = "white" if value < middle else "black"
            axes.text(j + 0.5, i + 0.5, f"{value:.1f}", ha="center", va="center", color=light, fontsize=6.5)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_yticks(np.arange(rows) + 0.5, [str(label) for label in values.index])
    axes.set_xticks(np.arange(columns) + 0.5, heads, fontsize=6, rotation=90 if upright else 0)
    axes.tick_params(length=0)
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, label="mean accuracy (%)", fraction=0.05, pad=0.02)
    return figure


def average_ranks(ranking: Ranking, look: Looks) -> Figure:
    """Average ranks on an axis, best at the left; bars join the cliques of `ranking` (a diagram after Demsar 2006)."""
    names, ranks = ranking.names, ranking.ranks
    count, half = len(names), (len(names) + 1) // 2
    cliques = ranking.cliques
    fits = int((WIDTH - AXIS) / 2 / LETTER) - RANK - 2  # characters of a name beside its rank
    wrapped = [wrap(name, fits) for name in names]
    side = LETTER * (RANK + 2 + max(len(line) for name in wrapped for line in name.split("\n")))
    width = min(WIDTH, max(0.85 * WIDTH, AXIS + 2 * side))
    step = 0.19 * max(1 + 0.6 * name.count("\n") for name in wrapped)
    top = 0.55 + 0.11 * len(cliques)
    height = top + step * half + 0.35
    figure, (axes,) = plain(width, height)
    axes.set_axis_off()
    low, high = 1.0, float(count)
    margin = (high - low) * side / (width - 2 * side)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(height, 0)
    at = 0.35
    axes.plot([low, high], [at, at], color="black", linewidth=0.8)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [at - 0.05, at], color="black", linewidth=0.6)
        if count <= 12 or tick % 2:
            axes.text(tick, at - 0.07, f"{tick}", ha="center", va="bottom", fontsize=6.5)
    for number, (first, last) in enumerate(cliques):
        y = at + 0.1 + 0.11 * number
        pad = 0.006 * (high - low)
        axes.plot(
            [ranks[first] - pad, ranks[last] + pad], [y, y], color="#333333", linewidth=2.4, solid_capstyle="butt"
        )
    for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        left = i < half
        y = top + step * (i if left else count - 1 - i)
        edge = low - 0.04 * (high - low) if left else high + 0.04 * (high - low)
        shape = look[name]
        axes.plot([rank, rank, edge], [at, y, y], color=shape.colour, linewidth=0.7)
        axes.plot([rank], [at], color=shape.colour, zorder=3, **shape.dot(5))
        there: dict[str, Any] = {"ha": "right" if left else "left", "va": "center", "fontsize": 7}
        axes.text(edge, y, f" {rank:.2f} ", **there)
        beyond = RANK * LETTER * (high - low + 2 * margin) / width
        axes.text(edge - beyond if left else edge + beyond, y, wrapped[i], **there)
    return figure


def heat_values(runs: pd.DataFrame, names: Sequence[Any], settings: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds of the mean accuracy, methods by settings, in the given orders."""
    mean = runs.groupby(["label", "setting"])["mean_accuracy"].mean().unstack("setting")
    return mean.reindex(index=[n for n in names if n in mean.index], columns=[s for s in settings if s in mean.columns])
