"""Measurements: seconds, the rate of a matrix product, peak memory, and several workloads in alternation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fedbench.run.meter import Meter, wait


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, until the device has finished it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, times: int = 3) -> float:
    """Multiply-adds per second of a product of square matrices of `size` rows, the best of `times`."""
    a = torch.randn(size, size, device=device).to(dtype)
    return max(size**3 / timed(lambda: a @ a, device) for _ in range(times))


def peak(work: Callable[[], Any], device: torch.device) -> int:
    """Peak bytes while `work` runs: of the GPU's memory, or on a CPU of the process's resident memory.

    Only Linux lets a process reset its peak; on other systems it is the highest value since the process started.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    meter = Meter(device)
    work()
    wait(device)
    return meter.read().peak_memory_bytes


def alternate(workloads: Mapping[str, Callable[[], Any]], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each workload, `repeat` times all of them in turn, every second time in reverse order.

    Changes of the machine's speed then affect all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for turn in range(repeat):
        for name in list(workloads)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(workloads[name], device))
    return seconds


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over turns of their seconds divided by ours."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
