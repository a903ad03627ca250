"""Figures of panels: one panel per setting and one legend for all; SVG for the page, PDF for the paper."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from fedbench.report.figures.fonts import fonts_without_layout
from fedbench.report.figures.style import WIDTH, Look, Looks

COLUMNS = 3
DPI = 170  # of the PNG, so that it is as wide as the page
RATIO = 30  # the least ratio of the largest to the smallest cost for a logarithmic axis
PANELS = 12  # most panels in one figure; more settings make more figures

Panel = Callable[[Axes, Any], None]


@dataclass(frozen=True)
class Drawing:
    """A figure for the page: its files by kind ("svg", "pdf", "png"); without files, the caption says why."""

    name: str
    title: str
    caption: str
    files: dict[str, bytes]
    width: float = 1.0  # share of WIDTH


def panels(
    keys: Sequence[Any],
    panel: Panel,
    look: Looks,
    names: dict[str, str],
    x: str | None = None,
    y: str | None = None,
    share_y: bool = False,
    tall: float = 2.0,
    legend: bool = True,
    lines: bool = True,
    heading: Callable[[Any], str] = str,
) -> Figure:
    """A figure with a panel per key and one legend below all of them."""
    columns = 2 if len(keys) == 4 else min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    beside = legend and columns < COLUMNS and max(map(len, names.values())) <= 28  # a legend at the right, else below
    across = 1 if beside else min(4, max(1, math.floor(WIDTH / (0.55 + 0.062 * max(map(len, names.values()))))))
    entries = 0.165 * math.ceil(len(look) / across) + 0.1
    height = rows * (tall + 0.3) + 0.25
    height = max(height, entries + 0.3) if beside else height + entries * legend
    figure = Figure(figsize=(WIDTH if columns > 1 else 0.7 * WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    for i, axes in enumerate(grid.flat):
        if i >= len(keys):
            axes.remove()
            continue
        panel(axes, keys[i])
        for drawn in (*axes.lines, *axes.collections, *axes.patches):
            drawn.set_in_layout(False)  # data lie inside the axes, and measuring each item takes as long as drawing it
        axes.set_title(_heading(heading(keys[i])))
        if x is not None and i + columns >= len(keys):
            axes.set_xlabel(x)
        if y is not None and i % columns == 0:
            axes.set_ylabel(y)
    if legend:
        handles = [
            Line2D([], [], color=shape.colour, linestyle=shape.line if lines else "none", **shape.dot(4.2))
            for shape in look.values()
        ]
        place: dict[str, Any] = {"loc": "outside right center" if beside else "outside lower center"}
        figure.legend(handles, list(names.values()), ncols=across, handlelength=3.0, columnspacing=1.2, **place)
    return figure


def _heading(text: str) -> str:
    """The heading, on one line if the panel is wide enough."""
    return text if len(text) <= 32 else "\n".join(wrap(part, 30) for part in text.split(" · "))


def save(figure: Figure, kinds: Sequence[str] = ("svg", "pdf")) -> dict[str, bytes]:
    """The figure as files of `kinds` ("svg", "pdf", "png"), without dates, so that equal figures give equal bytes."""
    figure.set_dpi(DPI)  # first of all, since the width of text depends on it
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0.5, 0.0)  # else all tick labels are measured to place a label without text
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)  # once for all files, since it takes as long as drawing
        figure.set_layout_engine("none")
    # the canvases' own functions, since savefig would draw each file twice, first to measure it
    made = {}
    for kind in kinds:
        data = io.BytesIO()
        if kind == "png":
            FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})  # type: ignore[no-untyped-call]
        elif kind == "pdf":
            with fonts_without_layout():
                FigureCanvasPdf(figure).print_pdf(data, metadata={"CreationDate": None, "ModDate": None})  # type: ignore[no-untyped-call]
        else:
            FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
        made[kind] = data.getvalue()
    return made


def crosses(axes: Axes, runs: pd.DataFrame, x: str, y: str, look: Looks, across: bool = True) -> NDArray[np.float64]:
    """A marker per method at its means of two columns, with bars of ± one sample standard deviation up and (`across`)
    sideways. Returns the points [methods, 2]."""
    cells = runs.dropna(subset=[x, y]).groupby("label")[[x, y]]
    mean, std = cells.mean(), cells.std().fillna(0.0)
    names = [name for name in look if name in mean.index]
    points, spread = mean.loc[names].to_numpy(dtype=float), std.loc[names].to_numpy(dtype=float)
    if names:
        bars: dict[str, Any] = {"colors": [look[name].colour for name in names], "linewidth": 0.6, "alpha": 0.7}
        axes.vlines(points[:, 0], points[:, 1] - spread[:, 1], points[:, 1] + spread[:, 1], **bars)
        if across:
            axes.hlines(points[:, 1], points[:, 0] - spread[:, 0], points[:, 0] + spread[:, 0], **bars)
    for name, point in zip(names, points, strict=True):
        axes.plot(point[:1], point[1:], color=look[name].colour, zorder=3, **look[name].dot(5.5))
    return points


def dots(shape: Look, count: int) -> dict[str, Any]:
    """Markers at the last point and at a few others, so that curves differ without colours."""
    every = max(1, count // 4)
    return {"markevery": list(range(count - 1, -1, -every)), **shape.dot()}


def at_edge(axes: Axes, shape: Look, value: float) -> None:
    """The method's marker at the right end of its horizontal line."""
    at = axes.get_yaxis_transform()
    axes.plot([1], [value], color=shape.colour, transform=at, clip_on=False, **shape.dot(4.5))


def percent(axis: Any) -> None:
    """Few round numbers on an axis of percentages."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def bytes_text(value: float) -> str:
    """`value` bytes with a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or prefix == "P":
            break
        value /= 1000
    return f"{value:g} {prefix}B"


def wrap(text: str, width: int = 22) -> str:
    """`text` broken after commas and brackets into lines of about `width` characters."""
    out = [""]
    for piece in re.findall(r"[^ ,(]+[ ,(]*|[ ,(]+", text):
        if out[-1] and len(out[-1]) + len(piece.rstrip()) > width:
            out.append("")
        out[-1] += piece
    return "\n".join(line.rstrip(" ") for line in out)


def plain(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of `width` x `height` inches with a grid of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def cost_axis(axes: Axes, costs: Sequence[float], unit: str = "") -> None:
    """An x axis of costs with decimal prefixes, from zero, or logarithmic if the costs span a ratio of RATIO.

    Costs of zero keep their place on a logarithmic axis, which is linear below the smallest other cost (symlog).
    """
    some = [value for value in costs if value > 0]
    if some and max(some) >= RATIO * min(some):
        if len(some) < len(costs):
            axes.set_xscale("symlog", linthresh=min(some), linscale=0.5)
            axes.set_xlim(0 - 0.06 * min(some), 2 * max(some))
            decades = 10.0 ** np.arange(np.ceil(np.log10(min(some))), np.log10(max(some)) + 0.1)
            axes.set_xticks([0.0, *decades[:: max(1, math.ceil(len(decades) / 3))]])
            axes.minorticks_off()
        else:
            log_axis(axes)
    elif some:
        axes.set_xlim(0 if len(some) == len(costs) else -0.03 * max(some), 1.08 * max(some))
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _prefixed(value, unit)))


def _prefixed(value: float, unit: str) -> str:
    text = bytes_text(value).removesuffix("B") + unit
    return "0" if value == 0 else text.strip()


def log_axis(axes: Axes) -> None:
    """Make the x axis logarithmic with few labels. Values within a factor of three stay on a linear axis."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 3 * low:
        axes.set_xscale("linear")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        return
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0,), numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the style has no mathematical text
    axes.xaxis.set_minor_formatter(NullFormatter())
