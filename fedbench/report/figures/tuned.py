"""Figures of a tuning: the best validation accuracy over trials, and accuracy against each searched value."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedbench.report.figures.catalogue import FigureCatalogue, FigureData
from fedbench.report.figures.frame import log_axis, percent
from fedbench.report.figures.style import Look, Looks


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """Two figures, if there is a tuning."""
    trials = data.evidence.trials
    if trials.empty:
        return
    trials = trials.assign(validation=100 * trials["validation"].astype(float))
    searches = dict(iter(trials.groupby("setting", sort=False)))
    catalogue.add(
        "trials",
        "Tuning: accuracy over trials",
        "Validation accuracy (mean over clients) of every trial in the order of the search, the first with the sweep file's "
        "values. Line: the best so far among trials of full length on one seed; pale markers: trials of fewer rounds; several "
        "markers above each other: the best trials on further seeds, which decide together; × at the foot: diverged. Test "
        "data were not evaluated in any trial.",
        "no trial is planned",
        list(searches),
        lambda axes, setting: over_trials(axes, searches[setting], catalogue.look),
        shown=lambda setting: list(searches[setting]["label"].unique()),
        x="trial",
        y="validation accuracy (%)",
    )
    tried = unfolded(trials)
    parts = dict(iter(tried.groupby(["setting", "path"], sort=False)))
    catalogue.add(
        "searched",
        "Tuning: accuracy by value",
        "Validation accuracy of every trial against a value that it tried. A trial varies all values of a method at once, so "
        "points differ in more than the value shown. Ring: the chosen values; pale: trials of fewer rounds; × at the foot: "
        "diverged.",
        "no trial is planned",
        list(parts),
        lambda axes, key: by_value(axes, parts[key], catalogue.look),
        shown=lambda key: list(parts[key]["label"].unique()),
        y="validation accuracy (%)",
        lines=False,
        tall=2.3,  # each panel has its own label below it
        heading=lambda key: key[0],
    )


def unfolded(trials: pd.DataFrame) -> pd.DataFrame:
    """A row per trial and searched path: the columns of `trials` without "values", and path, value."""
    rows = [
        {**row, "path": path, "value": value}
        for row in trials.to_dict("records")
        for path, value in json.loads(str(row["values"])).items()
    ]
    return pd.DataFrame(rows, columns=[*trials.columns, "path", "value"]).drop(columns="values")


def over_trials(axes: Axes, trials: pd.DataFrame, look: Looks) -> None:
    """One setting: number of the trial across. If each seed was searched separately, each has its own line."""
    for name, shape in look.items():
        for _, of_seed in trials[trials["label"] == name].groupby("seed"):
            of_seed = of_seed.sort_values("number", kind="stable")
            searched = (of_seed["rounds"] == of_seed["rounds"].max()) & (of_seed["kind"] != "repeated")
            known = of_seed[searched & of_seed["validation"].notna()]
            best = np.maximum.accumulate(known["validation"].to_numpy(dtype=float))
            axes.plot(known["number"], best, color=shape.colour, linestyle=shape.line, drawstyle="steps-post")
            _dots(axes, of_seed["number"].astype(float), of_seed, shape)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    percent(axes.yaxis)


def by_value(axes: Axes, tried: pd.DataFrame, look: Looks) -> None:
    """One setting and path: the value across."""
    numeric = tried["value"].map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()
    words: Sequence[str] = sorted({str(value) for value in tried["value"]})
    for name, shape in look.items():
        of_label = tried[tried["label"] == name]
        if len(of_label):
            x = (
                of_label["value"].astype(float)
                if numeric
                else of_label["value"].map(lambda v: float(words.index(str(v))))
            )
            _dots(axes, x, of_label, shape)
    if numeric:
        values = tried["value"].astype(float)
        if values.min() > 0 and values.max() / values.min() >= 8:
            log_axis(axes)
    else:
        axes.set_xticks(range(len(words)), words)
    axes.set_xlabel(str(tried["path"].iloc[0]))
    percent(axes.yaxis)


def _dots(axes: Axes, x: pd.Series[float], rows: pd.DataFrame, shape: Look) -> None:
    """A marker per trial, pale for shorter trials, with a ring if chosen, and a cross at the foot if it diverged."""
    full = rows["rounds"] == rows["rounds"].max()
    for part, alpha in ((full, 1.0), (~full, 0.35)):
        axes.plot(
            x[part], rows.loc[part, "validation"], linestyle="none", color=shape.colour, alpha=alpha, **shape.dot()
        )
    ring = rows["chosen"].astype(bool)
    axes.plot(x[ring], rows.loc[ring, "validation"], "o", markersize=7, markerfacecolor="none", color=shape.colour)
    lost = rows["state"] == "diverged"
    foot = axes.get_xaxis_transform()
    axes.plot(x[lost], [0.02] * int(lost.sum()), "x", color=shape.colour, transform=foot, clip_on=False)
