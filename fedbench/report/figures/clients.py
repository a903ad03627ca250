"""Figures of single clients: the spread over clients, two methods client by client, held-out clients, classes of clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.report import run_artifacts
from fedbench.report.figures.catalogue import FigureCatalogue, FigureData, by_setting, having
from fedbench.report.figures.frame import crosses, percent, wrap
from fedbench.report.figures.split import bubbles
from fedbench.report.figures.style import Looks
from fedbench.report.statistics import ClientPairs, client_pairs


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """Add accuracy per client, two methods client by client, held-out clients, and classes of clients."""
    evidence, done, settings = data.evidence, data.done, data.settings
    look, shown_as = catalogue.look, catalogue.shown_as
    frame = evidence.clients.assign(accuracy=100 * evidence.clients["accuracy"].astype(float))
    trained = by_setting(frame[~frame["held_out"].astype(bool)])
    catalogue.add(
        "clients",
        "Accuracy per client",
        "Last round's accuracy of each client that takes part in training, all finished seeds together: box, quartiles with "
        "median; whiskers, 10th to 90th percentile; ×, the worst client; diamond, the mean.",
        "no finished run has a clients.parquet",
        panel=lambda axes, setting: per_client(axes, trained[setting], look, shown_as),
        x="accuracy of a client (%)",
        y=None,
        share_y=True,
        tall=0.55 + 0.155 * len(shown_as),
        legend=False,
        keys=having(trained, settings)["keys"],
    )
    _add_duel(catalogue, data, trained)
    new = by_setting(done.dropna(subset=["held_out_mean_accuracy"]))
    catalogue.add(
        "newcomers",
        "Held-out clients against those that train",
        "Mean accuracy over clients that never train (up) against the mean over those that do (across); means over the seeds "
        "that are done, bars ± one sample standard deviation. On the line, new clients are as accurate.",
        "no finished run has held-out clients",
        panel=lambda axes, setting: newcomers(axes, new[setting], look),
        x="clients that train (%)",
        y="held-out clients (%)",
        lines=False,
        **having(new, settings),
    )
    counts = {}
    for setting, part in done.groupby("setting", sort=False):
        for run in part.sort_values("seed", kind="stable")["run"].iloc[:1]:
            class_counts = run_artifacts.class_counts(evidence.results / run)
            if not class_counts.empty:
                rows = evidence.clients[evidence.clients["run"] == run]
                counts[str(setting)] = class_counts, rows.sort_values("client")["held_out"]
    catalogue.add(
        "split",
        "Classes of clients",
        "Training samples of each client and class, first seed. The area of a bubble is their number; orange: held-out.",
        "no finished run has the classes of its clients",
        [setting for setting in settings if setting in counts],
        lambda axes, setting: holdings(axes, *counts[setting]),
        y="class",
        legend=False,
    )


def _add_duel(catalogue: FigureCatalogue, data: FigureData, trained: Mapping[str, pd.DataFrame]) -> None:
    first, second = data.versus or ("", "")
    keys = [s for s in data.settings if s in trained and data.versus and {first, second} <= set(trained[s]["label"])]
    counts = {}
    for setting in keys:
        for pair in data.within.get(setting, ()):
            if {pair.first, pair.second} == {first, second}:
                counts[setting] = (pair if pair.first == first else pair.reversed).clients
    catalogue.add(
        "duel",
        "Client by client",
        f"A dot per training client and seed: accuracy with {first} (up) against {second} (across). Above "
        f"the line the client is more accurate with {first}. Numbers as in the statistics of each setting."
        if data.versus
        else "",
        "no two methods have clients in common",
        keys,
        lambda axes, setting: duel(axes, trained[setting], first, second, catalogue.look, counts.get(setting)),
        x=wrap(f"{second} (%)", 30),
        y=wrap(f"{first} (%)", 30),
        legend=False,
    )


def per_client(axes: Axes, clients: pd.DataFrame, look: Looks, shown_as: Mapping[str, str]) -> None:
    """Boxes of one setting, one line for each method, the same in each panel. clients: label, accuracy in percent."""
    values = {name: part.dropna().to_numpy(dtype=float) for name, part in clients.groupby("label")["accuracy"]}
    rows = [(place, name) for place, name in enumerate(shown_as) if len(values.get(name, ()))]
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
    axes.set_yticks(range(len(shown_as)), list(shown_as.values()))
    axes.set_ylim(len(shown_as) - 0.4, -0.6)
    axes.grid(False, axis="y")
    percent(axes.xaxis)


def duel(
    axes: Axes, clients: pd.DataFrame, first: str, second: str, look: Looks, pairs: ClientPairs | None = None
) -> None:
    """A dot per client and seed: the accuracy with `second` across and with `first` up, and the counts on each side.

    clients: label, seed, client, accuracy in percent; pairs: the counts of the report's statistics.
    """
    wide = clients[clients["label"].isin([first, second])].pivot(
        index=["seed", "client"], columns="label", values="accuracy"
    )
    wide = wide.dropna()
    x, y = wide[second].to_numpy(dtype=float), wide[first].to_numpy(dtype=float)
    ends = [min(x.min(), y.min()) - 2, max(x.max(), y.max()) + 2]
    axes.plot(ends, ends, color="#888888", linewidth=0.7, zorder=1)
    axes.plot(x, y, linestyle="none", color=look[first].colour, alpha=0.45, markeredgewidth=0, marker="o", markersize=3)
    pairs = pairs or client_pairs(np.asarray(y - x, dtype=np.float64))
    corner: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 6.5}
    axes.text(0.03, 0.97, f"{pairs.ahead} of {pairs.pairs} gain", va="top", **corner)
    ties = f"{pairs.equal} tie, " if pairs.equal else ""
    axes.text(0.97, 0.03, f"{ties}{pairs.behind} lose", ha="right", **corner)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    percent(axes.xaxis)
    percent(axes.yaxis)


def newcomers(axes: Axes, runs: pd.DataFrame, look: Looks) -> None:
    """A point per method: mean over training clients (across) and over held-out clients (up), bars over seeds."""
    mean = crosses(axes, runs, "mean_accuracy", "held_out_mean_accuracy", look)
    if len(mean):
        low = float(mean.min())
        axes.axline((low, low), slope=1, color="#888888", linewidth=0.7, zorder=1)
    percent(axes.xaxis)
    percent(axes.yaxis)


def holdings(axes: Axes, counts: pd.DataFrame, held_out: pd.Series[bool]) -> None:
    """The classes of clients in a small panel. counts: client, class, samples; held_out: by client."""
    table = np.zeros((len(held_out), int(counts["class"].max()) + 1), dtype=np.int64)
    table[counts["client"], counts["class"]] = counts["samples"]
    bubbles(axes, table, held_out.to_numpy(dtype=bool), cell=72 * min(1.9 / table.shape[0], 1.7 / table.shape[1]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylabel("")
    axes.set_xlabel(f"client (largest bubble: {table.max():,})")
