"""Runs to figures: one look per method throughout a report, panels per setting, PNG for the page and PDF for the paper.

Everything here is a pure function of data frames; the same frames give the same bytes. Means and bands are over seeds of
runs that are done; other runs appear as thin lines or not at all, and the captions say so.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedbench.tables import REFERENCE, labels

WIDTH = 7.0  # inches: both columns of a two-column paper
COLUMNS = 3
PANELS = 9  # in one figure; more settings make more figures

# Okabe and Ito's colours (2008) without yellow, which is lost on white paper, and black, which is kept for references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24")
# The last two are stars with four and eight points.
MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "d", "h", "*", (4, 1, 0), (8, 1, 0))
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
REFERENCES: tuple[Any, ...] = ((0, (6, 2)), (0, (2, 1)), (0, (6, 1, 1, 1)), (0, (1, 2)))


@dataclass(frozen=True)
class Look:
    """How a method is drawn, everywhere."""

    colour: str
    marker: Any
    line: Any

    def dot(self, size: float = 3.6) -> dict[str, Any]:
        """The marker with a white rim, as matplotlib's arguments; stars are drawn larger, for they look smaller."""
        star = self.marker == "*" or isinstance(self.marker, tuple)
        rim = {"markeredgecolor": "white", "markeredgewidth": 0.3}
        return {"marker": self.marker, "markersize": size * (1.6 if star else 1), **rim}


@dataclass(frozen=True)
class Drawing:
    """A figure for the page: its files by kind ("png", "pdf"), or none and a caption that says why."""

    name: str
    title: str
    caption: str
    files: dict[str, bytes]
    width: float = 1.0  # share of WIDTH


@contextmanager
def style() -> Iterator[None]:
    """The one place that says how figures look: small sans serif type, thin frame, fonts embedded as TrueType."""
    with mpl.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
            "font.size": 7.5,
            "axes.titlesize": 7.5,
            "axes.labelsize": 7.5,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.5,
            "xtick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.2,
            "lines.markersize": 3.6,
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "text.parse_math": False,  # a dollar in a label is a dollar
            "text.usetex": False,
            "svg.hashsalt": "fedbench",
        }
    ):
        yield


def looks(names: Sequence[str], references: Sequence[str] = ()) -> dict[str, Look]:
    """A look for each label: 7 colours, then the same colours with another line; the marker never repeats before 15.

    References are black to grey with broken lines, so that colour means a contestant.
    """
    own = [name for name in names if name not in set(references)]
    found = {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)])
        for i, name in enumerate(own)
    }
    for i, name in enumerate(name for name in names if name in set(references)):
        shade = ("#000000", "#6b6b6b")[i % 2]
        found[name] = Look(shade, MARKERS[(len(own) + i) % len(MARKERS)], REFERENCES[i % len(REFERENCES)])
    return found


def all_figures(runs: pd.DataFrame, records: pd.DataFrame, clients: pd.DataFrame) -> list[Drawing]:
    """Every figure of a report, in the order of the page; one without data has no files and says why.

    runs, records, clients: as `fedbench.report.gather` makes them.
    """
    names = labels(runs)
    references = list(runs.loc[runs["reference"].astype(bool), "label"].unique())
    look = looks(names, references)
    settings = list(dict.fromkeys(runs["setting"]))
    partial = _partial(runs)
    runs = runs.assign(**{name: 100 * runs[name] for name in ("mean_accuracy", "worst_accuracy")})
    done = runs[runs["state"] == "done"]
    curves = records
    if not records.empty:
        percent = 100 * pd.to_numeric(records["mean_accuracy"]).astype(float)
        curves = records.assign(mean_accuracy=percent)[np.isfinite(percent)]
    finished = curves if curves.empty else curves[curves["state"] == "done"]
    told = {name: name + REFERENCE * (name in references) + "*" * (name in partial) for name in names}
    marks = f" {REFERENCE}: a reference." if references else ""
    marks += " *: not all seeds are done in every setting." if partial else ""
    drawings: list[Drawing] = []

    def add(
        name: str, title: str, caption: str, why_not: str, keys: Sequence[Any], panel: Panel, **layout: Any
    ) -> None:
        if not keys:
            drawings.append(Drawing(name, title, f"Not drawn: {why_not}.", {}))
        for start in range(0, len(keys), PANELS):
            part = keys[start : start + PANELS]
            more = f"-{start // PANELS + 1}" if start else ""
            with style():
                figure = _panels(part, panel, look, told, **layout)
                files = _save(figure)
            drawings.append(Drawing(name + more, title, caption + marks, files, figure.get_figwidth() / WIDTH))

    def has(frame: pd.DataFrame) -> list[str]:
        return [setting for setting in settings if not frame.empty and (frame["setting"] == setting).any()]

    add(
        "rounds",
        "Accuracy over rounds",
        "Mean accuracy over clients: line, mean over seeds; band, ± one sample standard deviation. Runs that are not done "
        "are thin lines of their own (× where a run failed or diverged) and enter no mean. A method with a single "
        "evaluated round is a horizontal line.",
        "no run has a record with an accuracy",
        has(curves),
        lambda axes, setting: rounds(axes, curves[curves["setting"] == setting], look),
        x="round",
        y="mean accuracy (%)",
    )
    add(
        "bytes",
        "Accuracy against communication",
        "Mean accuracy over clients against all bytes sent so far, up and down together (logarithmic); mean over the "
        "seeds that are done. Marker: the last round. A method that sends nothing is a horizontal line.",
        "no run is done",
        has(finished),
        lambda axes, setting: against_bytes(axes, finished[finished["setting"] == setting], look),
        x="bytes sent, up + down",
        y="mean accuracy (%)",
    )
    trained = clients.assign(accuracy=100 * clients["accuracy"].astype(float))
    trained = trained[~trained["held_out"].astype(bool)]
    add(
        "clients",
        "Accuracy per client",
        "Last round's accuracy of each client that takes part in training, all finished seeds together: box, quartiles with "
        "median; whiskers, 10th to 90th percentile; ×, the worst client; diamond, the mean.",
        "no finished run has a clients.parquet",
        has(trained),
        lambda axes, setting: per_client(axes, trained[trained["setting"] == setting], look, told),
        x="accuracy of a client (%)",
        y=None,
        share_y=True,
        tall=0.55 + 0.155 * len(names),
        legend=False,
    )
    groups = _families(done)
    add(
        "heterogeneity",
        "Heterogeneity against accuracy",
        "Mean accuracy over clients at the last round by how the data were dealt out; mean ± sample standard deviation over "
        "the seeds that are done.",
        "it needs finished runs of at least two partitions of one dataset",
        groups,
        lambda axes, group: heterogeneity(axes, group, look),
        y="mean accuracy (%)",
        heading=lambda group: group.title,
    )
    add(
        "worst",
        "Worst client against mean",
        "Accuracy of the worst client against the mean over clients at the last round; mean over the seeds that are done, "
        "bars ± one sample standard deviation. Up and to the right is better.",
        "no run is done",
        has(done.dropna(subset=["worst_accuracy"])),
        lambda axes, setting: worst(axes, done[done["setting"] == setting], look),
        x="mean accuracy (%)",
        y="worst client's accuracy (%)",
        lines=False,
    )
    return drawings


def _partial(runs: pd.DataFrame) -> set[str]:
    """Labels with some, but not all, of a setting's seeds done somewhere."""
    done = runs[runs["state"] == "done"].groupby(["setting", "label"])["seed"].nunique()
    seeds = runs.groupby("setting")["seed"].nunique()
    short = done < seeds.reindex(done.index.get_level_values("setting")).to_numpy()
    return set(done.index[short].get_level_values("label"))


NAMES = ("rounds", "bytes", "clients", "heterogeneity", "worst")  # of the files that `all_figures` may make
Panel = Callable[[Axes, Any], None]


# -- panels ------------------------------------------------------------------------------------------------------------
def rounds(axes: Axes, records: pd.DataFrame, look: dict[str, Look]) -> None:
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
            _at_edge(axes, shape, mean[0])
            continue
        axes.plot(x, mean, color=shape.colour, linestyle=shape.line, **_dots(shape, len(x)))
        axes.fill_between(x, mean - std, mean + std, color=shape.colour, alpha=0.13, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _percent(axes.yaxis)


def against_bytes(axes: Axes, records: pd.DataFrame, look: dict[str, Look]) -> None:
    """Accuracy against cumulative bytes in one setting. records: label, round, mean_accuracy, total_bytes_up/down."""
    records = records.assign(sent=records["total_bytes_up"] + records["total_bytes_down"])
    nothing = []
    for name, shape in look.items():
        mean = records[records["label"] == name].groupby("round")[["sent", "mean_accuracy"]].mean()
        if mean.empty:
            continue
        if not np.isfinite(mean["sent"].iloc[-1]):
            continue
        if not mean["sent"].iloc[-1] > 0:
            nothing.append((shape, mean["mean_accuracy"].iloc[-1]))
            continue
        mean = mean[mean["sent"] > 0]
        x, y = mean["sent"].to_numpy(), mean["mean_accuracy"].to_numpy()
        axes.plot(x, y, color=shape.colour, linestyle=shape.line)
        axes.plot(x[-1:], y[-1:], color=shape.colour, **shape.dot(4.5))
    for shape, value in nothing:
        axes.axhline(value, color=shape.colour, linestyle=shape.line, linewidth=0.9)
        _at_edge(axes, shape, value)
    if axes.lines and len(nothing) < len(axes.lines) / 2:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    _percent(axes.yaxis)


def per_client(axes: Axes, clients: pd.DataFrame, look: dict[str, Look], told: dict[str, str]) -> None:
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
    _percent(axes.xaxis)


@dataclass(frozen=True)
class Family:
    """A panel of the heterogeneity figure: done runs of one dataset, and where each lies on the x axis."""

    title: str
    axis: str
    runs: pd.DataFrame  # with column "level": a number, or the name of a partition
    numeric: bool


def _families(runs: pd.DataFrame) -> list[Family]:
    """Partitions that differ in one number share a numeric axis; a dataset's other partitions stand side by side."""
    found = []
    for context, own in runs.groupby("context", sort=False):
        rest = False
        fields = own["partition_fields"].map(json.loads)
        kind = fields.map(lambda block: str(block.get("name")) if isinstance(block, dict) else "")
        for name, same in own.groupby(kind, sort=False):
            blocks = fields.loc[same.index]
            field = _one_number(list(blocks)) if name else None
            if field is None:
                rest = True
                continue
            level = blocks.map(lambda block, field=field: float(block[field]))
            found.append(Family(str(context), f"{name}: {field.replace('_', ' ')}", same.assign(level=level), True))
        if rest and own["partition"].nunique() > 1:
            found.append(Family(str(context), "", own.assign(level=own["partition"]), False))
    return found


def _one_number(blocks: Sequence[dict[str, Any]]) -> str | None:
    """The only field in which the blocks differ, if it is a number in each."""
    fields = sorted({field for block in blocks for field in block})
    differ = [field for field in fields if len({json.dumps(block.get(field)) for block in blocks}) > 1]
    if len(differ) != 1:
        return None
    numeric = all(
        isinstance(block.get(differ[0]), int | float) and not isinstance(block.get(differ[0]), bool) for block in blocks
    )
    return differ[0] if numeric else None


def heterogeneity(axes: Axes, family: Family, look: dict[str, Look]) -> None:
    """Accuracy by partition: lines over a number, or groups of points over names."""
    levels = sorted(family.runs["level"].unique()) if family.numeric else list(dict.fromkeys(family.runs["level"]))
    present = [name for name in look if (family.runs["label"] == name).any()]
    log = family.numeric and levels[0] > 0 and levels[-1] / levels[0] >= 8
    place: dict[Any, float] = {level: float(level) if family.numeric else float(i) for i, level in enumerate(levels)}
    for i, name in enumerate(present):
        shape = look[name]
        cells = family.runs[family.runs["label"] == name].groupby("level")["mean_accuracy"]
        mean, std = cells.mean().reindex(levels).dropna(), cells.std().fillna(0.0)
        shift = 0.0 if family.numeric else (i - (len(present) - 1) / 2) * 0.75 / max(len(present), 1)
        axes.errorbar(
            [place[level] + shift for level in mean.index],
            mean,
            yerr=std.reindex(mean.index),
            color=shape.colour,
            linestyle=shape.line if family.numeric else "none",
            elinewidth=0.7,
            **shape.dot(4.6),
        )
    if log:
        axes.set_xscale("log")
    axes.minorticks_off()
    if family.numeric:
        axes.set_xticks([place[level] for level in levels], [f"{level:g}" for level in levels])
    else:
        axes.set_xticks(range(len(levels)), [_wrap(str(level)) for level in levels])
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.grid(False, axis="x")
        for edge in range(1, len(levels)):
            axes.axvline(edge - 0.5, color="#cccccc", linewidth=0.5)
    axes.set_xlabel(family.axis)
    _percent(axes.yaxis)


def worst(axes: Axes, runs: pd.DataFrame, look: dict[str, Look]) -> None:
    """A point per method: mean accuracy across, the worst client's up, error bars over seeds."""
    for name, shape in look.items():
        own = runs.loc[runs["label"] == name, ["mean_accuracy", "worst_accuracy"]].dropna()
        if own.empty:
            continue
        mean, std = own.mean(), own.std().fillna(0.0)
        axes.errorbar(
            mean.iloc[:1],
            mean.iloc[1:],
            xerr=std.iloc[:1],
            yerr=std.iloc[1:],
            fmt="none",
            ecolor=shape.colour,
            elinewidth=0.6,
            alpha=0.7,
        )
        axes.plot(mean.iloc[:1], mean.iloc[1:], color=shape.colour, zorder=3, **shape.dot(5.5))
    _percent(axes.xaxis)
    _percent(axes.yaxis)


# -- frames ------------------------------------------------------------------------------------------------------------
def _panels(
    keys: Sequence[Any],
    panel: Panel,
    look: dict[str, Look],
    told: dict[str, str],
    x: str | None = None,
    y: str | None = None,
    share_y: bool = False,
    tall: float = 2.0,
    legend: bool = True,
    lines: bool = True,
    heading: Callable[[Any], str] = str,
) -> Figure:
    """A figure with a panel per key and one legend below all of them."""
    columns = min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    beside = legend and columns < COLUMNS  # a legend at the right, else below
    across = 1 if beside else min(4, max(1, math.floor(WIDTH / (0.55 + 0.062 * max(map(len, told.values()))))))
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
        axes.set_title("\n".join(_wrap(part, 30) for part in heading(keys[i]).split(" · ")))
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
        figure.legend(handles, list(told.values()), ncols=across, handlelength=3.0, columnspacing=1.2, **place)
    return figure


def _save(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and PDF, without dates, so that the same figure is the same bytes."""
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "ModDate": None})):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=200, metadata=metadata)
        files[kind] = stream.getvalue()
    return files


def _dots(shape: Look, count: int) -> dict[str, Any]:
    """A marker at the last point and a few before it, so that curves are told apart without colours."""
    every = max(1, count // 4)
    return {"markevery": list(range(count - 1, -1, -every)), **shape.dot()}


def _at_edge(axes: Axes, shape: Look, value: float) -> None:
    """The method's marker at the right end of its horizontal line."""
    at = axes.get_yaxis_transform()
    axes.plot([1], [value], color=shape.colour, transform=at, clip_on=False, **shape.dot(4.5))


def _percent(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _bytes(value: float) -> str:
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or prefix == "P":
            break
        value /= 1000
    return f"{value:g} {prefix}B"


def _wrap(text: str, width: int = 22) -> str:
    """`text` broken after commas and brackets into lines of about `width` characters."""
    out = [""]
    for piece in re.findall(r"[^ ,(]+[ ,(]*|[ ,(]+", text):
        if out[-1] and len(out[-1]) + len(piece.rstrip()) > width:
            out.append("")
        out[-1] += piece
    return "\n".join(line.rstrip(" ") for line in out)
