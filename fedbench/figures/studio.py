"""Draws figures in processes of their own, a core each, while the report goes on with its tables."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from fedbench.figures.frame import Drawing, save
from fedbench.figures.style import WIDTH, style

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    todo = [number for number, sketch in enumerate(sketches) if sketch.make]
    # A fork beside torch's OpenMP threads would wait for ever at the child's first OpenMP loop (t-SNE has one).
    if sys.platform != "linux" or cores < 2 or len(todo) <= FEW or "torch" in sys.modules:
        return lambda: [draw(sketch) for sketch in sketches]
    _sketches = sketches
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(cores, len(todo)), mp_context=fork, initializer=_one_thread)
    with warnings.catch_warnings():
        # of forking beside the threads of numerical libraries, none of which is at work now
        warnings.simplefilter("ignore", DeprecationWarning)
        futures: dict[int, Future[Drawing]] = {number: pool.submit(_draw, number) for number in todo}

    def finish() -> list[Drawing]:
        try:
            return [futures[i].result() if i in futures else sketch.drawing for i, sketch in enumerate(sketches)]
        finally:
            pool.shutdown(cancel_futures=True)

    return finish


def _one_thread() -> None:
    """A core each; and no OpenMP threads, which do not survive a fork."""
    threadpool_limits(1, user_api="openmp")


def _draw(number: int) -> Drawing:
    return draw(_sketches[number])
