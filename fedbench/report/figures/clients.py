"""What single clients get: the spread over them, two methods client by client, clients that never trained, who holds what."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.report.figures.frame import crosses, percent
from fedbench.report.figures.split import bubbles
from fedbench.report.figures.style import Looks


def per_client(axes: Axes, clients: pd.DataFrame, look: Looks, told: Mapping[str, str]) -> None:
    """Boxes of one setting, a method a line, the same line in each panel. clients: label, accuracy in percent."""
    values = {name: part.dropna().to_numpy(dtype=float) for name, part in clients.groupby("label")["accuracy"]}
    rows = [(place, name) for place, name in enumerate(told) if len(values.get(name, ()))]
    if rows:
        at = np.array([place for place, _ in rows], dtype=float)
        colours = [look[name].colour for _, name in rows]
        parts = [np.percentile(values[name], [10, 25, 50, 75, 90]) for _, name in rows]
        p10, q25, median, q75, p90 = np.array(parts).T
        faint = [mpl.colors.to_rgba(colour, 0.35) for colour in colours]
        axes.barh(at, q75 - q25, 0.6, left=q25, color=faint, edgecolor=colours, linewidth=0.7)
        axes.hlines([*at, *at], [*p10, *q75], [*q25, *p90], colors=colours * 2, linewidth=0.8)
        axes.vlines([*p10, *p90], [*at - 0.15] * 2, [*at + 0.15] * 2, colors=colours * 2, linewidth=0.8)
        axes.vlines(median, at - 0.3, at + 0.3, colors=colours, linewidth=1.4)
        lowest, mean = ([float(f(values[name])) for _, name in rows] for f in (np.min, np.mean))
        axes.scatter(lowest, at, marker="x", c=colours, s=10, linewidths=1)
        axes.scatter(mean, at, marker="D", facecolors="white", edgecolors=colours, s=8, linewidths=1, zorder=4)
    axes.set_yticks(range(len(told)), list(told.values()))
    axes.set_ylim(len(told) - 0.4, -0.6)
    axes.grid(False, axis="y")
    percent(axes.xaxis)


def duel(axes: Axes, clients: pd.DataFrame, first: str, second: str, look: Looks) -> None:
    """A dot per client and seed: the accuracy with `second` across, with `first` up. clients: label, seed, client,
    accuracy in percent."""
    wide = clients[clients["label"].isin([first, second])].pivot(
        index=["seed", "client"], columns="label", values="accuracy"
    )
    wide = wide.dropna()
    x, y = wide[second].to_numpy(dtype=float), wide[first].to_numpy(dtype=float)
    ends = [min(x.min(), y.min()) - 2, max(x.max(), y.max()) + 2]
    axes.plot(ends, ends, color="#888888", linewidth=0.7, zorder=1)
    axes.plot(x, y, linestyle="none", color=look[first].colour, alpha=0.45, markeredgewidth=0, marker="o", markersize=3)
    ahead, equal = float((y > x).mean()), float((y == x).mean())
    axes.text(0.03, 0.97, f"ahead: {100 * ahead:.0f} %", transform=axes.transAxes, va="top", fontsize=6.5)
    axes.text(
        0.97, 0.03, f"behind: {100 * (1 - ahead - equal):.0f} %", transform=axes.transAxes, ha="right", fontsize=6.5
    )
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    percent(axes.xaxis)
    percent(axes.yaxis)


def newcomers(axes: Axes, runs: pd.DataFrame, look: Looks) -> None:
    """A point per method: the mean over clients that train across, over held-out clients up, bars over seeds."""
    mean = crosses(axes, runs, "mean_accuracy", "held_out_mean_accuracy", look)
    if len(mean):
        low = float(mean.min())
        axes.axline((low, low), slope=1, color="#888888", linewidth=0.7, zorder=1)
    percent(axes.xaxis)
    percent(axes.yaxis)


def holdings(axes: Axes, counts: pd.DataFrame, held_out: pd.Series[bool]) -> None:
    """Who holds what, in a small panel. counts: client, class, samples; held_out: by client."""
    table = np.zeros((len(held_out), int(counts["class"].max()) + 1), dtype=np.int64)
    table[counts["client"], counts["class"]] = counts["samples"]
    bubbles(axes, table, held_out.to_numpy(dtype=bool), cell=72 * min(1.9 / table.shape[0], 1.7 / table.shape[1]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylabel("")
    axes.set_xlabel(f"client (largest bubble: {table.max():,})")
