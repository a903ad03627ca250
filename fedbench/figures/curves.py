"""Accuracy while a run goes on: over its rounds, and over the bytes that it has sent."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.figures.frame import at_edge, bytes_axis, dots, percent
from fedbench.figures.style import Looks


def rounds(axes: Axes, records: pd.DataFrame, look: Looks) -> None:
    """Learning curves of one setting. records: label, seed, run, state, round, mean_accuracy in percent."""
    for name, shape in look.items():
        own = records[records["label"] == name]
        for _, run in own[own["state"] != "done"].groupby("run", sort=True):
            run = run.sort_values("round")
            axes.plot(run["round"], run["mean_accuracy"], color=shape.colour, linestyle=shape.line, linewidth=0.5)
            if run["state"].iloc[0] in ("failed", "diverged"):
                axes.plot(run["round"].iloc[-1:], run["mean_accuracy"].iloc[-1:], "x", color=shape.colour)
        by_round = own[own["state"] == "done"].groupby("round")["mean_accuracy"]
        if not len(by_round):
            continue
        x, mean, std = by_round.mean().index.to_numpy(), by_round.mean().to_numpy(), by_round.std().fillna(0).to_numpy()
        if len(x) == 1:
            axes.axhline(mean[0], color=shape.colour, linestyle=shape.line, linewidth=0.9)
            at_edge(axes, shape, mean[0])
            continue
        axes.plot(x, mean, color=shape.colour, linestyle=shape.line, **dots(shape, len(x)))
        axes.fill_between(x, mean - std, mean + std, color=shape.colour, alpha=0.13, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    percent(axes.yaxis)


def against_bytes(axes: Axes, records: pd.DataFrame, look: Looks) -> None:
    """Accuracy against cumulative bytes in one setting. records: label, round, mean_accuracy, total_bytes_up/down."""
    records = records.assign(sent=records["total_bytes_up"] + records["total_bytes_down"])
    nothing = []
    for name, shape in look.items():
        by_round = records[records["label"] == name].groupby("round")
        mean = by_round[["sent", "mean_accuracy"]].mean().assign(std=by_round["mean_accuracy"].std().fillna(0))
        if mean.empty:
            continue
        if not np.isfinite(mean["sent"].iloc[-1]):
            continue
        if not mean["sent"].iloc[-1] > 0:
            nothing.append((shape, mean["mean_accuracy"].iloc[-1]))
            continue
        mean = mean[mean["sent"] > 0]
        x, y, std = (mean[column].to_numpy() for column in ("sent", "mean_accuracy", "std"))
        axes.plot(x, y, color=shape.colour, linestyle=shape.line)
        axes.fill_between(x, y - std, y + std, color=shape.colour, alpha=0.13, linewidth=0)
        axes.plot(x[-1:], y[-1:], color=shape.colour, **shape.dot(4.5))
    for shape, value in nothing:
        axes.axhline(value, color=shape.colour, linestyle=shape.line, linewidth=0.9)
        at_edge(axes, shape, value)
    if axes.lines and len(nothing) < len(axes.lines) / 2:
        bytes_axis(axes)
    percent(axes.yaxis)
