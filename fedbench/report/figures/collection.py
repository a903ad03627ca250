"""Collects the sketches of a report: which panels a figure holds, which methods its legend names, how many are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from fedbench.report.figures.drawing import Sketch
from fedbench.report.figures.frame import PANELS, Drawing, Panel, panels
from fedbench.report.figures.style import Looks


@dataclass
class FigureCatalogue:
    """Collects sketches; `look` and `told` are every method's look and name in a legend, `most` the panels of a kind."""

    look: Looks
    told: dict[str, str]
    marks: str
    most: int
    sketches: list[Sketch] = field(default_factory=list)

    def add(
        self,
        name: str,
        title: str,
        caption: str,
        why_not: str,
        keys: Sequence[Any],
        panel: Panel,
        shown: Callable[[Any], Sequence[str]] | None = None,
        look: Looks | None = None,
        **layout: Any,
    ) -> None:
        """Figures with a panel for each of `keys`; `shown` says which labels a key's panel holds, for the legend."""
        left = len(keys) - self.most
        caption += self.marks + (f" {left} more are not drawn; report fewer sweeps to see them." if left > 0 else "")
        if not keys:
            self.one(name, title, "", why_not, None)
        for start in range(0, min(len(keys), self.most), PANELS):
            part = keys[start : start + PANELS]
            present = {label for key in part for label in shown(key)} if shown else set(self.told)
            kept = {label: one for label, one in (look or self.look).items() if label in present or not shown}
            told = {label: self.told.get(label, label) for label in kept}
            more = f"-{start // PANELS + 1}" if start else ""
            self.one(name + more, title, caption, "", partial(panels, part, panel, kept, told, **layout))

    def one(self, name: str, title: str, caption: str, why_not: str, make: Callable[[], Figure] | None) -> None:
        """A figure that lays itself out."""
        self.sketches.append(Sketch(Drawing(name, title, caption if make else f"Not drawn: {why_not}.", {}), make))
