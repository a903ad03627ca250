"""Accuracy during a run: over its rounds, the bytes sent, the multiply-adds, and the privacy loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.report.figures.catalogue import FigureCatalogue, FigureData, by_setting, having
from fedbench.report.figures.frame import Panel, at_edge, cost_axis, dots, percent
from fedbench.report.figures.style import Looks
from fedbench.report.tables.metrics import PREFIX, metric_names, metric_of

# {figure: (column of cumulative cost, title, words for the cost, axis)}
SPENT = {
    "bytes": (
        "sent",
        "Accuracy against communication",
        "all bytes sent so far, up and down together",
        "bytes sent, up + down",
    ),
    "compute": (
        "total_multiply_adds",
        "Accuracy against computation",
        "the clients' multiply-adds so far, in training and for the features that they cache",
        "multiply-adds of clients",
    ),
    "privacy": (
        "epsilon",
        "Accuracy against privacy",
        "epsilon, the privacy loss of all rounds so far",
        "epsilon",
    ),
}


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """Add accuracy over rounds, bytes and multiply-adds, and over the privacy loss of private aggregations."""
    records = data.evidence.records
    if not records.empty:
        percents = 100 * pd.to_numeric(records["mean_accuracy"]).astype(float)
        records = records.assign(mean_accuracy=percents)[np.isfinite(percents)]
        records = records.assign(sent=records["total_bytes_up"] + records["total_bytes_down"])
    measured = [name for name in metric_names(records.columns) if name.startswith(PREFIX)]
    numbers = [name for name in (*measured, "epsilon") if name in records]  # what a plug-in wrote may be text
    records = records.assign(**{n: pd.to_numeric(records[n], errors="coerce").astype(float) for n in numbers})
    every = by_setting(records)
    finished = by_setting(records if records.empty else records[records["state"] == "done"])
    catalogue.add(
        "rounds",
        "Accuracy over rounds",
        "Mean accuracy over clients: line, mean over seeds; band, ± one sample standard deviation. Runs that are not done "
        "are separate thin lines (× where a run failed or diverged) and enter no mean. A method with a single "
        "evaluated round is a horizontal line.",
        "no run has a record with an accuracy",
        panel=lambda axes, setting: rounds(axes, every[setting], catalogue.look),
        x="round",
        y="mean accuracy (%)",
        **having(every, data.settings),
    )
    for column in measured:
        _add_metric(catalogue, data, column, every)
    for name, (column, title, words, axis) in SPENT.items():
        if column == "epsilon" and not (column in records and np.isfinite(records[column]).any()):
            continue  # a figure for private aggregations only
        catalogue.add(
            name,
            title,
            f"Mean accuracy over clients against {words}: mean over the seeds that are done; band, ± one sample standard "
            "deviation. Marker: the last round. A method that spends nothing is a horizontal line.",
            "no run is done",
            panel=_panel(finished, column, catalogue.look),
            x=axis,
            y="mean accuracy (%)",
            **having(finished, data.settings),
        )


def _add_metric(catalogue: FigureCatalogue, data: FigureData, column: str, every: Mapping[str, pd.DataFrame]) -> None:
    """Add the figure of a metric plug-in over rounds, from the records of each setting."""
    name = metric_of(column).title
    shares = {setting: part.assign(mean_accuracy=100 * part[column]) for setting, part in every.items()}
    shown = {setting: part[np.isfinite(part["mean_accuracy"])] for setting, part in shares.items()}
    catalogue.add(
        f"metric-{column.removeprefix(PREFIX)}",
        f"{name} over rounds",
        f"{name}, a metric plug-in, over all test samples of clients that train: line, mean over seeds; band, ± one "
        "sample standard deviation.",
        "no run has a record with it",
        panel=lambda axes, setting: rounds(axes, shown[setting], catalogue.look),
        x="round",
        y=f"{name.lower()} (%)",
        **having({setting: part for setting, part in shown.items() if len(part)}, data.settings),
    )


def _panel(finished: Mapping[str, pd.DataFrame], column: str, look: Looks) -> Panel:
    return lambda axes, setting: spent(axes, finished[setting], column, look)


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


def spent(axes: Axes, records: pd.DataFrame, column: str, look: Looks) -> None:
    """Accuracy against a cumulative cost in one setting. records: label, round, mean_accuracy in percent, `column`."""
    cells = records.groupby(["label", "round"])
    every = cells[[column, "mean_accuracy"]].mean().assign(std=cells["mean_accuracy"].std().fillna(0.0))
    means = {str(name): part.droplevel(0) for name, part in every.groupby(level="label")}
    free, costs = [], []
    for name, shape in look.items():
        mean = means.get(name)
        if mean is None or not np.isfinite(mean[column].iloc[-1]):
            continue
        if not mean[column].iloc[-1] > 0:
            free.append((shape, mean["mean_accuracy"].iloc[-1]))
            continue
        x, y, std = (mean[part].to_numpy() for part in (column, "mean_accuracy", "std"))
        axes.plot(x, y, color=shape.colour, linestyle=shape.line)
        axes.fill_between(x, y - std, y + std, color=shape.colour, alpha=0.13, linewidth=0)
        axes.plot(x[-1:], y[-1:], color=shape.colour, **shape.dot(4.5))
        costs += x.tolist()
    for shape, value in free:
        axes.axhline(value, color=shape.colour, linestyle=shape.line, linewidth=0.9)
        at_edge(axes, shape, value)
    cost_axis(axes, [value for value in costs if value > 0], "B" if column == "sent" else "")
    percent(axes.yaxis)
