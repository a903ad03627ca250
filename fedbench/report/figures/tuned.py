"""The validation curve of a tuning: every trial's accuracy on validation data against the value it tried."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from fedbench.report.figures.frame import log_axis, percent
from fedbench.report.figures.style import Looks


def unfolded(trials: pd.DataFrame) -> pd.DataFrame:
    """A row per trial and searched path: setting, label, path, value, validation in percent, state, chosen."""
    rows = [
        (
            one.setting,
            one.label,
            path,
            value,
            100 * float(one.validation),  # type: ignore[arg-type]
            one.state,
            bool(one.chosen),
        )
        for one in trials.itertuples()
        for path, value in json.loads(str(one.values)).items()
    ]
    return pd.DataFrame(rows, columns=["setting", "label", "path", "value", "validation", "state", "chosen"])


def curve(axes: Axes, tried: pd.DataFrame, look: Looks) -> None:
    """One setting and path. A line per method over the values tried; ring: chosen; cross at the foot: diverged."""
    numeric = tried["value"].map(lambda value: isinstance(value, int | float)).all()
    words: Sequence[str] = sorted({str(value) for value in tried["value"]})
    for name, shape in look.items():
        own = tried[tried["label"] == name]
        if own.empty:
            continue
        x = own["value"].astype(float) if numeric else own["value"].map(lambda value: float(words.index(str(value))))
        own = own.assign(x=x).sort_values("x")
        known = own[own["validation"].notna()]
        axes.plot(known["x"], known["validation"], color=shape.colour, linestyle=shape.line, **shape.dot(3.6))
        best = known[known["chosen"]]
        axes.plot(best["x"], best["validation"], "o", markersize=7, markerfacecolor="none", color=shape.colour)
        lost = own[own["state"] == "diverged"]
        if len(lost):
            at = axes.get_xaxis_transform()
            axes.plot(lost["x"], [0.02] * len(lost), "x", color=shape.colour, transform=at, clip_on=False)
    if numeric:
        values = tried["value"].astype(float)
        if values.min() > 0 and values.max() / values.min() >= 8:
            log_axis(axes)
    else:
        axes.set_xticks(range(len(words)), words)
    axes.set_xlabel(str(tried["path"].iloc[0]))
    percent(axes.yaxis)
