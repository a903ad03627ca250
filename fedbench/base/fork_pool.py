"""Runs functions in forked processes. They share the memory of this process, so no arguments are copied."""

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


def usable_cores() -> int:
    """How many forked processes may work at once, one on each core; 0 if this process must not fork.

    After a fork beside torch's OpenMP threads, the child's first OpenMP loop (t-SNE has one) would wait for ever.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return 0
    return len(os.sched_getaffinity(0))


def make_pool(size: int) -> ProcessPoolExecutor:
    """A pool of `size` processes, which are forked at the first `submit`."""
    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("fork"), initializer=_limit_to_one_thread)


def submit(pool: ProcessPoolExecutor, work: Callable[..., T], *arguments: object) -> Future[T]:
    """As `pool.submit`, without the warning about forks in a process with threads: numerical libraries' threads are idle."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return pool.submit(work, *arguments)


def start_in_fork(work: Callable[..., T], *arguments: object) -> Callable[[], T]:
    """Start `work(*arguments)` in a separate process, and return a function that waits for its result.

    Whatever `work` imports stays in that process. Its result or exception must be picklable. If this process must not
    fork, the work is done when its result is asked for.
    """
    if not usable_cores():
        return lambda: work(*arguments)
    pool = make_pool(1)
    future = submit(pool, work, *arguments)

    def result() -> T:
        with pool:
            return future.result()

    return result


def _limit_to_one_thread() -> None:
    """One core for each process, and no OpenMP threads, which do not survive a fork."""
    threadpool_limits(1, user_api="openmp")
