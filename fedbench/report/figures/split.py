"""The figure of a split: each client's classes as bubbles, or as a map for many clients, and three histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from fedbench.report.figures.frame import save
from fedbench.report.figures.style import WIDTH, style

MOST = 60, 120  # most clients and classes that are drawn as bubbles
BINS = 150  # most bins along each side of a map
BLUE, ORANGE = "#0072B2", "#D55E00"
GREY = "#8a8a8a"
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.97), "ncols": 2, "borderaxespad": 0}


def draw(
    counts: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    variation: NDArray[np.float64],
    by_chance: NDArray[np.float64],
    title: str,
) -> dict[str, bytes]:
    """The figure as {"png": ..., "pdf": ...}. counts [clients, C]: training samples; variation, by_chance [clients]."""
    clients, classes = counts.shape
    few = clients <= MOST[0] and classes <= MOST[1]
    height = float(np.clip(0.065 * classes + 0.8, 3.4, 7.0)) if few else 4.2
    with style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        wide = figure.add_gridspec(3, 2, width_ratios=(2.4, 1))
        axes = figure.add_subplot(wide[:, 0])
        small = [figure.add_subplot(wide[row, 1]) for row in range(3)]
        figure.suptitle(title, fontsize=8)
        if few:
            widest = bubbles(axes, counts, held_out, cell=72 * min(4.2 / clients, (height - 0.7) / classes))
            _legend(axes, int(counts.max()), widest, bool(held_out.any()))
        else:
            _map(figure, axes, counts)
        _sizes(small[0], counts.sum(1))
        _classes(small[1], (counts > 0).sum(1), classes)
        _variation(small[2], variation, by_chance)
        return save(figure, ("png", "pdf"))


def bubbles(axes: Axes, counts: NDArray[np.int64], held_out: NDArray[np.bool_], cell: float) -> float:
    """A bubble for each client and class, its area the number of training samples; `cell`: points between two.

    Returns the area of the largest bubble in square points.
    """
    most = counts.max()
    widest = float(np.clip(1.25 * cell, 2.5, 26)) ** 2  # of a marker, in square points
    for out, colour in ((False, BLUE), (True, ORANGE)):
        k, c = np.nonzero(counts * (held_out == out)[:, None])
        axes.scatter(k, c, s=widest * counts[k, c] / most, c=colour, alpha=0.75, linewidths=0)
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.set_ylim(counts.shape[1] - 0.3, -0.7)
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    return float(widest)


def _legend(axes: Axes, most: int, widest: float, held_out: bool) -> None:
    shown = sorted({max(1, most // 4), most})
    dots = [(BLUE, float(np.sqrt(widest * n / most)), f"{n:,} sample{'s' * (n > 1)}") for n in shown]
    if held_out:
        dots.append((ORANGE, min(6.0, dots[-1][1]), "held out"))
    look: dict[str, Any] = {"marker": "o", "linestyle": "none", "markeredgewidth": 0, "alpha": 0.75}
    axes.legend(
        handles=[Line2D([], [], color=colour, markersize=size, label=label, **look) for colour, size, label in dots],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(dots),
        handlelength=max(size for _, size, _ in dots) / 7,  # in letters of 7 points
        handletextpad=0.3,
        borderpad=max(size for _, size, _ in dots) / 28,
    )


def _map(figure: Figure, axes: Axes, counts: NDArray[np.int64]) -> None:
    """Shares of classes in a client's training samples, clients in the order of their largest class."""
    clients, classes = counts.shape
    shares = counts / counts.sum(1, keepdims=True)
    main = shares.argmax(1)
    order = np.lexsort((-shares[np.arange(clients), main], main))
    starts = np.unique(np.linspace(0, clients, min(clients, BINS) + 1).astype(int))[:-1]
    image = np.add.reduceat(shares[order], starts, axis=0) / np.diff([*starts, clients])[:, None]
    bands = np.unique(np.linspace(0, classes, min(classes, BINS) + 1).astype(int))[:-1]
    image = np.add.reduceat(image, bands, axis=1)
    drawn = axes.imshow(
        image.T,
        extent=(0, clients, classes, 0),
        aspect="auto",
        cmap="Blues",
        norm=PowerNorm(0.5, 0, max(float(image.max()), 1e-9)),
        interpolation="nearest",
    )
    axes.grid(False)
    axes.set_xlabel(f"{clients:,} clients, in the order of their largest class")
    axes.set_ylabel("class")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar = figure.colorbar(drawn, ax=axes, location="top", aspect=45, pad=0.01, shrink=0.9)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.ax.tick_params(labelsize=6)
    cells = [
        f"{n / bins:.0f} {of}" for n, bins, of in ((clients, len(starts), "clients"), (classes, len(bands), "classes"))
    ]
    together = "" if (len(starts), len(bands)) == counts.shape else f" (a cell: about {' x '.join(cells)})"
    bar.set_label("share of a class in a client's training samples" + together)


def _sizes(axes: Axes, sizes: NDArray[np.int64]) -> None:
    low, high = max(1, int(sizes.min())), int(sizes.max())
    log = high / low > 30
    if log:
        edges = np.geomspace(low, high + 1, 25).tolist()
    else:
        step = max(1, -(-(high - low + 1) // int(np.clip(2 * np.sqrt(len(sizes)), 6, 25))))
        edges = (np.arange(low, high + step + 1, step) - 0.5).tolist()
    axes.hist(sizes, bins=edges, color=BLUE, alpha=0.75)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        _whole(axes, edges)
    _histogram(axes, "training samples of a client")


def _classes(axes: Axes, held: NDArray[np.int64], classes: int) -> None:
    low, high = int(held.min()), int(held.max())
    step = max(1, -(-(high - low + 1) // 25))
    edges = (np.arange(low, high + step + 1, step) - 0.5).tolist()
    axes.hist(held, bins=edges, color=BLUE, alpha=0.75)
    _whole(axes, edges)
    _histogram(axes, f"classes of a client, of {classes:,}")


def _whole(axes: Axes, edges: list[float]) -> None:
    """Whole numbers on the x axis, and room around a single bar."""
    middle, half = (edges[0] + edges[-1]) / 2, max(3.5, 0.55 * (edges[-1] - edges[0]))
    axes.set_xlim(max(-0.5, middle - half), middle + half)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _variation(axes: Axes, variation: NDArray[np.float64], by_chance: NDArray[np.float64]) -> None:
    edges = np.linspace(0, 1, 26).tolist()
    axes.hist(variation, bins=edges, color=BLUE, alpha=0.75)
    axes.hist(by_chance, bins=edges, histtype="step", color=GREY, linewidth=0.9)
    axes.set_xlim(0, 1)
    _histogram(axes, "total variation from the whole")
    handles = [Line2D([], [], color=BLUE, linewidth=4, alpha=0.75), Line2D([], [], color=GREY, linewidth=0.9)]
    axes.legend(handles, ["this split", "dealt at random"], handlelength=1.2, fontsize=6, **ABOVE)


def _histogram(axes: Axes, what: str) -> None:
    axes.set_xlabel(what)
    axes.set_ylabel("clients")
    axes.grid(False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
