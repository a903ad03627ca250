"""Figures over all settings: interquartile means, performance profiles, improvement, wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedbench.report.aggregates import Estimate, Scores, improvement, iqm, outcomes, profile, scores
from fedbench.report.figures.catalogue import FigureCatalogue, FigureData
from fedbench.report.figures.frame import percent, plain
from fedbench.report.figures.style import WIDTH, Looks

CHARACTER = 0.056  # inches of a character of a label
TOO_FEW = "it needs two methods that are done in every setting"


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """Add interquartile means, profiles, probabilities of improvement, and outcomes."""
    by_label = scores(data.done, data.settings)
    names = [name for name in data.names if name in by_label]
    where = f"all runs of {len(data.settings)} setting{'s' * (len(data.settings) > 1)}"
    means = {name: iqm(by_label[name]) for name in names}
    several = len(names) > 1
    catalogue.add_whole(
        "iqm",
        "Interquartile mean",
        f"Mean of the middle half of {where}, mean accuracy over clients at the last round; bars: 95 % intervals of a "
        "bootstrap over seeds within settings, too narrow for few seeds. The tests, not these bars, decide what differs."
        + catalogue.marks,
        TOO_FEW,
        partial(_rows, means, catalogue, "interquartile mean accuracy (%)") if several else None,
    )
    catalogue.add(
        "profiles",
        "Performance profiles",
        f"The share of {where} whose mean accuracy exceeds a threshold. A curve above another at every threshold is better.",
        TOO_FEW,
        [""] if several else [],
        lambda axes, _: profiles(axes, {name: by_label[name] for name in names}, catalogue.look),
        shown=lambda _: names,
        x="threshold of mean accuracy (%)",
        y="share of runs above it",
    )
    contestants = [n for n in names if not data.evidence.runs.loc[data.evidence.runs["label"] == n, "reference"].any()]
    best = max(contestants, key=lambda name: means[name].value, default="")
    chances = {name: improvement(by_label[best], by_label[name]) for name in names if name != best} if best else {}
    catalogue.add_whole(
        "improvement",
        "Probability of improvement",
        f"The probability that a run of {best}, the contestant with the largest interquartile mean, is more accurate than a "
        "run of the method in the same setting, P(best > method); mean over settings, bars: 95 % intervals of that bootstrap."
        + catalogue.marks,
        TOO_FEW,
        partial(_rows, chances, catalogue, "P(best > method)", middle=0.5, scale=1.0) if chances else None,
    )
    counts = outcomes(data.within, names)
    catalogue.add_whole(
        "outcomes",
        "Wins, ties and losses",
        "In how many settings the method of the row is significantly better than / not significantly different from / worse "
        "than that of the column." + catalogue.marks,
        "it needs two methods with two seeds in a setting",
        partial(_matrix, counts, [n for n in names if any(n in pair for pair in counts)], catalogue)
        if counts
        else None,
    )


def profiles(axes: Axes, methods: Mapping[str, Scores], look: Looks) -> None:
    """A step curve per method."""
    values = np.concatenate([np.concatenate(list(parts)) for parts in methods.values()])
    thresholds = np.linspace(max(0.0, values.min() - 2), min(100.0, values.max() + 2), 200)
    for name, parts in methods.items():
        shape = look[name]
        share = profile(parts, thresholds)
        axes.plot(thresholds, share, color=shape.colour, linestyle=shape.line, drawstyle="steps-post")
        half = int(np.argmin(np.abs(share - 0.5)))
        axes.plot(thresholds[half], share[half], color=shape.colour, **shape.dot(4.5))
    axes.set_ylim(-0.03, 1.03)
    percent(axes.xaxis)


def _rows(
    estimates: Mapping[str, Estimate],
    catalogue: FigureCatalogue,
    title: str,
    middle: float | None = None,
    scale: float = 1.0,
) -> Figure:
    """A row per method: its value and interval."""
    names = list(estimates)
    left = CHARACTER * max(len(catalogue.shown_as[name]) for name in names)
    figure, (axes,) = plain(min(WIDTH, left + 3.6), 0.55 + 0.19 * len(names))
    for place, name in enumerate(names):
        estimate, shape = estimates[name], catalogue.look[name]
        axes.plot([scale * estimate.low, scale * estimate.high], [place, place], color=shape.colour, linewidth=1.4)
        axes.plot(scale * estimate.value, place, color=shape.colour, **shape.dot(5.5))
    if middle is not None:
        axes.axvline(middle, color="#888888", linewidth=0.7, zorder=1)
        axes.set_xlim(-0.03, 1.03)
    axes.set_yticks(range(len(names)), [catalogue.shown_as[name] for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(title)
    return figure


def _matrix(
    counts: Mapping[tuple[str, str], tuple[int, int, int]], names: Sequence[str], catalogue: FigureCatalogue
) -> Figure:
    """A cell per pair, "wins/ties/losses", coloured by wins minus losses."""
    size = len(names)
    shown = [catalogue.shown_as[name] for name in names]
    longest = CHARACTER * max(map(len, shown))
    cell = 0.42
    figure, (axes,) = plain(min(WIDTH, longest + 0.3 + cell * size), min(9.0, longest + 0.2 + 0.22 * size))
    balance = np.full((size, size), np.nan)
    for (row, column), (wins, ties, losses) in counts.items():
        balance[names.index(row), names.index(column)] = (wins - losses) / (wins + ties + losses)
    axes.pcolormesh(balance, cmap="PuOr_r", vmin=-1.6, vmax=1.6)
    for (row, column), outcome in counts.items():
        at = names.index(column) + 0.5, names.index(row) + 0.5
        axes.text(*at, "/".join(map(str, outcome)), ha="center", va="center", fontsize=6)
    axes.set_xticks(np.arange(size) + 0.5, shown, rotation=90)
    axes.set_yticks(np.arange(size) + 0.5, shown)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(False)
    return figure
