"""How the benchmark measures: seconds, the rate of a matrix product, peak memory, and contenders in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fedbench.run.meter import Meter


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, until the device has done it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Return when the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, times: int = 3) -> float:
    """Multiply-adds per second of a product of square matrices of `size` rows, the best of several."""
    a = torch.randn(size, size, device=device).to(dtype)
    return max(size**3 / timed(lambda: a @ a, device) for _ in range(times))


def peak(work: Callable[[], Any], device: torch.device) -> int:
    """Most bytes in use while `work` runs: of the GPU's memory, else of memory resident in the whole process.

    Where the kernel does not let a process forget its peak (any but Linux), it is the process's highest so far.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    meter = Meter(device)
    work()
    wait(device)
    return meter.read().peak_memory_bytes


def alternate(contenders: Mapping[str, Callable[[], Any]], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender, `repeat` times all of them in turn, every other time backwards.

    What changes the machine's mood then hits all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeat):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(contenders[name], device))
    return seconds


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median, over turns, of their seconds by ours."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
