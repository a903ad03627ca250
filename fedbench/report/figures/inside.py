"""What a method has learnt: its prompts in two dimensions, and the pictures that methods offer of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fedbench.report import run_artifacts
from fedbench.report.figures.catalogue import FigureCatalogue, FigureData
from fedbench.report.figures.frame import PANELS

Floats = NDArray[np.float64]
TENSORS = ("prompt", "class_prompt", "prototype")
LOOKS: dict[str, dict[str, Any]] = {
    "shared": {"marker": "s", "c": "black", "s": 12},
    "client": {"marker": "^", "c": "#D55E00"},
}


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """Add prompts and pictures of the first seed of every method, in the first setting that has some."""
    states: list[tuple[str, dict[str, Floats]]] = []
    for setting in data.settings:
        here = data.done[data.done["setting"] == setting].sort_values("seed", kind="stable").drop_duplicates("label")
        for run, label in zip(here["run"], here["label"], strict=True):
            state = run_artifacts.state(data.evidence.results / str(run), TENSORS)
            if {"class", "client"} & set(sets(state)):
                states.append((str(label), state))
        if states:
            break
    catalogue.add(
        "prompts",
        "Prompts in two dimensions",
        "Prompts at the end of a run, first seed and first setting. Squares: shared prompts; dots: class prompts, coloured by "
        "where the class's prototype lies on the first principal component of all prototypes (alike colours, alike classes); "
        "triangles: the prompts of clients. Axes: the first two principal components of all prompts.",
        "no finished run left a checkpoint with prompts of classes or clients",
        states[:PANELS],
        lambda axes, key: prompts(axes, key[1]),
        heading=lambda key: key[0],
        legend=False,
    )
    pictures = [
        (label, name, values, next(iter(panels.values())))
        for label, (_, panels) in data.evidence.pictures.items()
        for name, values in panels.items()
    ]
    captions = list(dict.fromkeys(caption for caption, _ in data.evidence.pictures.values()))
    catalogue.add(
        "pictures",
        "Inside the methods",
        " ".join(captions)
        + " Square roots of the values, black 0, yellow 1; rows and columns of a square panel in the order "
        "of an average-linkage tree of the first panel's rows. First seed and first setting.",
        "no method of the sweep files offers a picture of a run that left a checkpoint (hook `picture`)",
        pictures,
        lambda axes, key: matrix(axes, key[2], order(key[3]) if len(key[3]) > 2 else None),
        heading=lambda key: f"{key[0]} · {key[1]}",
        legend=False,
    )


def sets(state: Mapping[str, Floats]) -> dict[str, Floats]:
    """The prompts of a last state by kind, each [n, D]: shared, class (mean of a class's tokens), client (likewise)."""
    points = {}
    if "server.prompt" in state:
        points["shared"] = state["server.prompt"].reshape(-1, state["server.prompt"].shape[-1])
    if "server.class_prompt" in state:
        points["class"] = state["server.class_prompt"].mean(1)
    if "client.prompt" in state:
        value = state["client.prompt"]
        points["client"] = value.reshape(len(value), -1, value.shape[-1]).mean(1)
    return points


def plane(points: Floats) -> Floats:
    """The first two principal components [n, 2] of points [n, D]; each component's largest entry is positive."""
    centred = points - points.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    components = left[:, :2] * scale[:2]
    components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    largest = np.take_along_axis(components, np.abs(components).argmax(0)[None], 0)
    return np.asarray(components * np.where(largest < 0, -1.0, 1.0))


def prompts(axes: Axes, state: Mapping[str, Floats]) -> None:
    """Prompts of a run: black squares are shared ones, dots class prompts (coloured by where the class's prototype lies on
    the first principal component of all prototypes), triangles the prompts of clients."""
    by_set = sets(state)
    whole = plane(np.concatenate(list(by_set.values())))
    start = 0
    for name, points in by_set.items():
        at = whole[start : start + len(points)]
        start += len(points)
        look = dict(LOOKS.get(name, {"marker": "o"}))
        if name == "class" and "server.prototype" in state:
            look["c"], look["cmap"] = plane(state["server.prototype"])[:, 0], "viridis"
        axes.scatter(at[:, 0], at[:, 1], **({"s": 10, "linewidths": 0, "alpha": 0.85} | look))
    axes.set_xticks([])
    axes.set_yticks([])


def order(rows: Floats) -> NDArray[np.int64]:
    """The order of rows [n, m] that makes similar rows neighbours: the leaves of an average-linkage tree."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    return np.asarray(leaves_list(linkage(rows, "average")), dtype=np.int64)


def matrix(axes: Axes, values: Floats, leaves: NDArray[np.int64] | None) -> None:
    """A heat map of square roots of values [rows, columns] from 0 to 1, so that small values show; square matrices in the order
    `leaves`."""
    if leaves is not None and values.shape == (len(leaves), len(leaves)):
        values = values[np.ix_(leaves, leaves)]
    axes.pcolormesh(np.sqrt(np.clip(values, 0, 1)), cmap="cividis", vmin=0, vmax=1, rasterized=True)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    if values.shape[0] == values.shape[1]:
        axes.set_aspect("equal")
        axes.set_xlabel(f"mean on the diagonal {100 * float(np.diag(values).mean()):.0f} %", fontsize=6.5)
