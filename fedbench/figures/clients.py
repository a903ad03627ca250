"""What single clients get: the spread over them, two methods client by client, clients that never trained, who holds what."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.figures.frame import percent
from fedbench.figures.style import Looks
from fedbench.split_figure import bubbles


def per_client(axes: Axes, clients: pd.DataFrame, look: Looks, told: Mapping[str, str]) -> None:
    """Boxes of one setting, a method a line, the same line in each panel. clients: label, accuracy in percent."""
    for place, name in enumerate(told):
        values = clients.loc[clients["label"] == name, "accuracy"].dropna().to_numpy(dtype=float)
        if not len(values):
            continue
        shape = look[name]
        axes.boxplot(
            [values],
            positions=[place],
            orientation="horizontal",
            widths=0.6,
            whis=(10, 90),
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": shape.colour, "alpha": 0.35, "edgecolor": shape.colour, "linewidth": 0.7},
            medianprops={"color": shape.colour, "linewidth": 1.4},
            whiskerprops={"color": shape.colour, "linewidth": 0.8},
            capprops={"color": shape.colour, "linewidth": 0.8},
        )
        axes.plot([values.min()], [place], "x", color=shape.colour, markersize=3.2)
        axes.plot([values.mean()], [place], "D", color="white", markeredgecolor=shape.colour, markersize=2.8, zorder=4)
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
    columns = ["mean_accuracy", "held_out_mean_accuracy"]
    seen: list[float] = []
    for name, shape in look.items():
        own = runs.loc[runs["label"] == name, columns].dropna()
        if own.empty:
            continue
        (x, y), (dx, dy) = own.mean(), own.std().fillna(0.0)
        axes.errorbar([x], [y], xerr=[dx], yerr=[dy], fmt="none", ecolor=shape.colour, elinewidth=0.6, alpha=0.7)
        axes.plot([x], [y], color=shape.colour, zorder=3, **shape.dot(5.5))
        seen += [x, y]
    if seen:
        axes.axline((min(seen), min(seen)), slope=1, color="#888888", linewidth=0.7, zorder=1)
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
