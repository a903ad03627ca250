"""What a method has learnt: its prompts in two dimensions, and how PEP-FedPT would mix class prompts for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TENSORS = ("prompt", "class_prompt", "prototype")
LOOKS: dict[str, dict[str, Any]] = {
    "shared": {"marker": "s", "c": "black", "s": 12},
    "client": {"marker": "^", "c": "#D55E00"},
}
TSNE_FROM = 30  # points; of fewer, neighbourhoods say little


def sets(state: Mapping[str, Floats]) -> dict[str, Floats]:
    """The prompts of a last state by kind, each [n, D]: shared, class (mean of a class's tokens), client (likewise)."""
    found = {}
    if "server.prompt" in state:
        found["shared"] = state["server.prompt"].reshape(-1, state["server.prompt"].shape[-1])
    if "server.class_prompt" in state:
        found["class"] = state["server.class_prompt"].mean(1)
    if "client.prompt" in state:
        value = state["client.prompt"]
        found["client"] = value.reshape(len(value), -1, value.shape[-1]).mean(1)
    return found


def flat_map(points: Floats, kind: str) -> Floats:
    """points [n, D] in two dimensions [n, 2]: their first two principal components, or t-SNE of them."""
    centred = points - points.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    plane = left[:, :2] * scale[:2]
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    turn = np.where(
        np.take_along_axis(plane, np.abs(plane).argmax(0)[None], 0) < 0, -1.0, 1.0
    )  # a sign is no matter of chance
    plane = plane * turn
    if kind == "PCA":
        return plane
    from sklearn.manifold import TSNE  # slow to import

    return np.asarray(TSNE(init="pca", perplexity=min(15, (len(points) - 1) / 3), random_state=0).fit_transform(points))


def prompts(axes: Axes, state: Mapping[str, Floats], kind: str) -> None:
    """Prompts of a run: black squares are shared ones, dots class prompts (coloured by where the class's prototype lies on
    the first principal component of all prototypes), triangles the prompts of clients."""
    found = sets(state)
    whole = flat_map(np.concatenate(list(found.values())), kind)
    start = 0
    for name, points in found.items():
        at = whole[start : start + len(points)]
        start += len(points)
        look = dict(LOOKS.get(name, {"marker": "o"}))
        if name == "class" and "server.prototype" in state:
            look["c"], look["cmap"] = flat_map(state["server.prototype"], "PCA")[:, 0], "viridis"
        axes.scatter(at[:, 0], at[:, 1], **({"s": 10, "linewidths": 0, "alpha": 0.85} | look))
    axes.set_xticks([])
    axes.set_yticks([])


def mixture(state: Mapping[str, Floats], method: Mapping[str, Any], prior: Floats | None = None) -> Floats:
    """CCMP weights [C, C]: row c are the weights of all class prompts for an input whose query is the prototype of c.

    As `methods/pep_fedpt.py` computes them; `prior` [C] is a client's class distribution, uniform if not given.
    """
    mean = state["server.prototype"]
    if method.get("similarity") == "euclidean":
        scores = -((mean[:, None] - mean[None]) ** 2).mean(-1) / 2
    else:
        unit = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        scores = unit @ unit.T
    scores = scores / float(method.get("temperature", 1.0))
    if prior is not None:
        scores = scores + np.log((1 - 1e-3) * prior + 1e-3 / len(prior))
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def order(mean: Floats) -> NDArray[np.int64]:
    """Classes so that like prototypes are neighbours: the leaves of an average-linkage tree."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    return np.asarray(leaves_list(linkage(mean, "average")), dtype=np.int64)


def weights(axes: Axes, values: Floats) -> None:
    """A heat map of CCMP weights, rows and columns in the same order of classes; square roots, so that small ones show."""
    axes.pcolormesh(np.sqrt(values), cmap="cividis", vmin=0, vmax=1, rasterized=True)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(False)
    diagonal = float(np.diag(values).mean())
    spread = float(np.exp(-(values * np.log(np.maximum(values, 1e-12))).sum(1)).mean())
    axes.set_xlabel(f"own class {100 * diagonal:.0f} %, {spread:.1f} classes mixed", fontsize=6.5)
    axes.set_xticks([])
    axes.set_yticks([])
