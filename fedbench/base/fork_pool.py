"""Work in processes forked from this one: what they need is there already, so that nothing is sent to them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")


def able() -> int:
    """How many forked processes may work beside each other, a core each; 0 where none may.

    A fork beside torch's OpenMP threads would wait for ever at the child's first OpenMP loop (t-SNE has one).
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return 0
    return len(os.sched_getaffinity(0))


def pool(size: int) -> ProcessPoolExecutor:
    """`size` processes, forked when the first work is given to `submit`."""
    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("fork"), initializer=_one_thread)


def submit(to: ProcessPoolExecutor, work: Callable[..., T], *arguments: object) -> Future[T]:
    """As `to.submit`, without the warning of forking beside the threads of numerical libraries: none is at work now."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return to.submit(work, *arguments)


def beside(work: Callable[..., T], *arguments: object) -> Callable[[], T]:
    """Start `work(*arguments)` in a process of its own: what it imports stays there. The function returned waits for it.

    What it returns or raises must be picklable. Where nothing may be forked, the work is done when it is waited for.
    """
    if not able():
        return lambda: work(*arguments)
    one = pool(1)
    begun = submit(one, work, *arguments)

    def finish() -> T:
        with one:
            return begun.result()

    return finish


def _one_thread() -> None:
    """A core each; and no OpenMP threads, which do not survive a fork."""
    threadpool_limits(1, user_api="openmp")
