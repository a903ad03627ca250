"""The figures of a report: first collected with title and caption, later drawn in separate processes, one per core."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedbench.base import fork_pool
from fedbench.report.evidence import Evidence
from fedbench.report.figures.fonts import fonts_looked_up_once
from fedbench.report.figures.frame import PANELS, Drawing, Panel, panels, save
from fedbench.report.figures.style import WIDTH, Looks, style
from fedbench.report.statistics import Comparison
from fedbench.report.tables.contests import Overall

FEW = 3  # up to this many figures are drawn in this process
# Errors that odd data may raise in a figure. The report then leaves out the figure and says why.
DATA_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, np.linalg.LinAlgError)


@dataclass(frozen=True)
class FigureData:
    """The data of the figures.

    done: finished runs with accuracies in percent and `sent`, all bytes of a run; settings, names: in order; within: the
    comparisons of each setting; versus: the two methods to compare client by client, if there are two.
    """

    evidence: Evidence
    done: pd.DataFrame
    settings: Sequence[str]
    names: Sequence[str]
    within: Mapping[str, Sequence[Comparison]]
    overall: Overall
    versus: tuple[str, str] | None


@dataclass(frozen=True)
class Sketch:
    """A figure to be drawn. Without `make`, a caption that says why there is none."""

    drawing: Drawing
    make: Callable[[], Figure] | None = None


@dataclass
class FigureCatalogue:
    """Collects figures. look, shown_as: each method's look and its name in a legend; marks: what the name's marks mean;
    most: panels of a kind that are drawn."""

    look: Looks
    shown_as: dict[str, str]
    marks: str = ""
    most: int = PANELS
    sketches: list[Sketch] = field(default_factory=list)

    @classmethod
    def empty(cls) -> FigureCatalogue:
        """A catalogue without figures."""
        return cls({}, {})

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
        """Figures with a panel for each of `keys`; `shown` gives the labels in a key's panel, for the legend."""
        left = len(keys) - self.most
        caption += self.marks + (f" {left} more are not drawn; report fewer sweeps to see them." if left > 0 else "")
        if not keys:
            self.add_whole(name, title, "", why_not, None)
        for start in range(0, min(len(keys), self.most), PANELS):
            part = keys[start : start + PANELS]
            present = {label for key in part for label in shown(key)} if shown else set(self.shown_as)
            kept = {label: shape for label, shape in (look or self.look).items() if label in present or not shown}
            names = {label: self.shown_as.get(label, label) for label in kept}
            more = f"-{start // PANELS + 1}" if start else ""
            self.add_whole(name + more, title, caption, "", partial(panels, part, panel, kept, names, **layout))

    def add_whole(self, name: str, title: str, caption: str, why_not: str, make: Callable[[], Figure] | None) -> None:
        """A figure with its own layout. Without `make`, the page shows `why_not`."""
        self.sketches.append(Sketch(Drawing(name, title, caption if make else f"Not drawn: {why_not}.", {}), make))

    def start_drawing(self) -> Callable[[], list[Drawing]]:
        """Start drawing. Returns a function that waits for all drawings, in order."""
        global _drawn_by_forks
        todo = [number for number, sketch in enumerate(self.sketches) if sketch.make]
        if (cores := fork_pool.usable_cores()) < 2 or len(todo) <= FEW:
            return lambda: [draw(sketch) for sketch in self.sketches]
        _drawn_by_forks = self.sketches
        pool = fork_pool.make_pool(min(cores, len(todo)))
        # The last figures on the page take longest, so they start first.
        futures = {number: fork_pool.submit(pool, _draw, number) for number in reversed(todo)}

        def finish() -> list[Drawing]:
            try:
                return [futures[i].result() if i in futures else s.drawing for i, s in enumerate(self.sketches)]
            finally:
                pool.shutdown(cancel_futures=True)

        return finish


_drawn_by_forks: Sequence[Sketch] = ()  # inherited by the forked processes, so that nothing is sent to them


def _draw(number: int) -> Drawing:
    gc.disable()  # the process draws a few figures only, and collecting takes a tenth of the time
    return draw(_drawn_by_forks[number])


def draw(sketch: Sketch) -> Drawing:
    """The figure in the report's style. If odd data make it impossible, the caption says so."""
    if sketch.make is None:
        return sketch.drawing
    with style(), fonts_looked_up_once():
        try:
            figure = sketch.make()
            return replace(sketch.drawing, files=save(figure), width=figure.get_figwidth() / WIDTH)
        except DATA_FAULTS as error:
            return replace(
                sketch.drawing, caption=f"Not drawn: the data do not fit it ({type(error).__name__}: {error})."
            )


def by_setting(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{setting: its rows}."""
    return {} if frame.empty else {str(setting): part for setting, part in frame.groupby("setting", sort=False)}


def having(parts: Mapping[str, pd.DataFrame], settings: Sequence[str]) -> dict[str, Any]:
    """The keys, and the labels of each, as `FigureCatalogue.add` takes them."""
    return {
        "keys": [setting for setting in settings if setting in parts],
        "shown": lambda setting: list(parts[setting]["label"].unique()),
    }
