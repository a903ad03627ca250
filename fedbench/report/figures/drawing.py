"""Draws figures in processes of their own, a core each, while the report goes on with its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from fedbench.base import fork_pool
from fedbench.report.figures.frame import Drawing, save
from fedbench.report.figures.style import WIDTH, style

FEW = 3  # so few figures are drawn here at once


@dataclass(frozen=True)
class Sketch:
    """A figure to be drawn, or without `make` only the caption that says why not."""

    drawing: Drawing
    make: Callable[[], Figure] | None = None


_sketches: Sequence[Sketch] = ()  # what the processes find when they are forked: nothing is sent to them


def draw(sketch: Sketch) -> Drawing:
    """The figure in the house style, as PNG and PDF."""
    if sketch.make is None:
        return sketch.drawing
    with style():
        figure = sketch.make()
        return replace(sketch.drawing, files=save(figure), width=figure.get_figwidth() / WIDTH)


def begin(sketches: Sequence[Sketch]) -> Callable[[], list[Drawing]]:
    """Start drawing; the function that is returned waits for all drawings, in order. What drawing raises, it raises."""
    global _sketches
    todo = [number for number, sketch in enumerate(sketches) if sketch.make]
    if (cores := fork_pool.able()) < 2 or len(todo) <= FEW:
        return lambda: [draw(sketch) for sketch in sketches]
    _sketches = sketches
    pool = fork_pool.pool(min(cores, len(todo)))
    futures = {number: fork_pool.submit(pool, _draw, number) for number in todo}

    def finish() -> list[Drawing]:
        try:
            return [futures[i].result() if i in futures else sketch.drawing for i, sketch in enumerate(sketches)]
        finally:
            pool.shutdown(cancel_futures=True)

    return finish


def _draw(number: int) -> Drawing:
    return draw(_sketches[number])
