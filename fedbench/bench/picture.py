"""The benchmark's figure: training speed of methods and baselines, and the time of each part of a round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedbench.bench.breakdown import PARTS
from fedbench.report.figures.style import COLOURS, WIDTH, style

BASELINE_COLOUR = "#9a9a9a"


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Write the figure of `result` to `file`; its suffix selects the format (.png, .pdf). Raises ValueError for another."""
    cases = result["cases"]
    rows = [len(case["methods"]) + len(case["baselines"]) for case in cases]
    with style():
        figure = Figure(figsize=(WIDTH, 0.75 * len(cases) + 0.19 * sum(rows)), layout="constrained")
        grid = figure.subplots(len(cases), 2, squeeze=False, gridspec_kw={"height_ratios": rows})
        for (speed, parts), case in zip(grid, cases, strict=True):
            _speed(speed, case)
            _parts(parts, case)
        handles, names = grid[0, 1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(PARTS))
        figure.savefig(file, dpi=200)


def _speed(axes: Any, case: Mapping[str, Any]) -> None:
    """A bar for each training speed in images per second; baselines are grey."""
    trained = {n: f for n, f in (case["baselines"] | case["methods"]).items() if "training" in f}
    values = [figures["training"]["images_per_second"] for figures in trained.values()]
    colours = [BASELINE_COLOUR if name in case["baselines"] else COLOURS[0] for name in trained]
    bars = axes.barh(range(len(trained)), values, color=colours, height=0.7)
    axes.bar_label(bars, [f" {value:,.0f}" for value in values], fontsize=6)
    axes.set_yticks(range(len(trained)), list(trained))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
    if max(values) > 30 * min(values):  # methods on cached features next to methods that run the backbone
        axes.set_xscale("log")
    axes.set_title(case["case"], loc="left")
    axes.set_xlabel("images per second, local training")


def _parts(axes: Any, case: Mapping[str, Any]) -> None:
    """A stacked bar of a round's parts for each method."""
    names = list(case["methods"])
    left = [0.0] * len(names)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [case["methods"][name]["round"][part] for name in names]
        axes.barh(range(len(names)), widths, left=left, color=colour, label=part, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds of a round")
