"""Accuracy while a run goes on: over its rounds, and over the bytes that it has sent."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.report.figures.frame import at_edge, bytes_axis, dots, percent
from fedbench.report.figures.style import Looks


def rounds(axes: Axes, records: pd.DataFrame, look: Looks) -> None:
    """Learning curves of one setting. records: label, seed, run, state, round, mean_accuracy in percent."""
    done = records["state"] == "done"
    ended = records[done].groupby(["label", "round"])["mean_accuracy"].agg(["mean", "std"]).fillna({"std": 0.0})
    means = {str(name): part.droplevel(0) for name, part in ended.groupby(level="label")}
    others = {str(name): part for name, part in records[~done].groupby("label")}
    for name, shape in look.items():
        for _, run in others[name].groupby("run") if name in others else ():
            run = run.sort_values("round")
            axes.plot(run["round"], run["mean_accuracy"], color=shape.colour, linestyle=shape.line, linewidth=0.5)
            if run["state"].iloc[0] in ("failed", "diverged"):
                axes.plot(run["round"].iloc[-1:], run["mean_accuracy"].iloc[-1:], "x", color=shape.colour)
        if name not in means:
            continue
        x, mean, std = (column.to_numpy() for _, column in means[name].reset_index().items())
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
    rounds = records.groupby(["label", "round"])
    every = rounds[["sent", "mean_accuracy"]].mean().assign(std=rounds["mean_accuracy"].std().fillna(0.0))
    means = {str(name): part.droplevel(0) for name, part in every.groupby(level="label")}
    nothing = []
    for name, shape in look.items():
        if (mean := means.get(name)) is None:
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
