"""The search space of a tuning: ranges by dotted path, their points, and points beyond their edges.

A range is ``{"log": (low, high)}``, ``{"linear": (low, high)}`` or ``{"choice": (a, b, ...)}``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedbench.base import rng
from fedbench.plan.config import ConfigError, PlannedRun, Sweep

Range = Mapping[str, tuple[Any, ...]]
Ranges = Mapping[str, Range]
FORMS = "{log: [low, high]}, {linear: [low, high]} or {choice: [...]}"
WIDER = 1 / 3  # how far a range is widened beyond its edge, as a share of its width


def search_space(sweep: Sweep, planned: PlannedRun) -> dict[str, Range]:
    """{dotted path: range}: the ranges that the method and its aggregation declare, changed by the sweep's `tune.search`.

    A field of the method or aggregation is not searched if the sweep file sets it to a value that is not its default. The
    space of a method that declares nothing is empty. Raises ConfigError for an invalid range.
    """
    space: dict[str, Range] = {}
    for kind in ("method", "aggregation"):
        block = getattr(planned.run, kind)
        cls: Any = sweep.plugins.classes[kind][block["name"]]
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        declared: Ranges = sweep.plugins.make(kind, block).search_space()
        if kind == "method" and not declared:
            return {}
        for name, values in declared.items():
            if name not in defaults or block[name] == defaults[name]:
                space[name if "." in name else f"{kind}.{name}"] = values
    for path, replaced in (sweep.tune.search if sweep.tune else {}).items():
        space.pop(path, None)
        if replaced is not None and _has(planned, path):
            space[path] = {str(law): values for law, values in replaced.items()}
    for path, values in space.items():
        check_range(path, values)
    return space


def _has(planned: PlannedRun, path: str) -> bool:
    """Whether the run has the field at `path`: not all methods have the same fields."""
    kind, _, name = path.partition(".")
    return kind not in ("method", "aggregation") or name in getattr(planned.run, kind)


def check_range(path: str, range_: Range) -> None:
    """Raise ConfigError if `range_` has none of the three forms."""
    law, values = next(iter(range_.items()), ("", ()))
    if len(range_) != 1 or law not in ("log", "linear", "choice") or not values:
        raise ConfigError(f"tune: {path}: expected {FORMS}, found {dict(range_)}")
    if law == "choice":
        return
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(values) != 2 or len(numbers) != 2:
        raise ConfigError(f"tune: {path}: expected two numbers, low and high, found {list(values)}")
    if not numbers[0] < numbers[1]:
        raise ConfigError(f"tune: {path}: expected low < high, found {list(values)}")
    if law == "log" and numbers[0] <= 0:
        raise ConfigError(f"tune: {path}: a logarithmic range starts above 0, not at {numbers[0]:g}")


def draws(ranges: Ranges, count: int) -> list[dict[str, Any]]:
    """`count` points of a Latin hypercube: each of `count` equal strata of a range is used once, at its middle.

    The strata of a range are shuffled by a random stream named after its path, so methods with the same range try the same
    values.
    """
    columns: dict[str, list[Any]] = {}
    for path, range_ in ranges.items():
        order = np.arange(count) if len(ranges) == 1 else rng.numpy_stream(0, "tune", path).permutation(count)
        columns[path] = [point(range_, (int(i) + 0.5) / count) for i in order]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def point(range_: Range, share: float) -> Any:
    """The value at `share` of the way through a range. A share below 0 or above 1 gives a value outside (not for choices)."""
    ((law, values),) = range_.items()
    if law == "choice":
        return values[min(int(share * len(values)), len(values) - 1)]
    low, high = float(values[0]), float(values[1])
    value = low * (high / low) ** share if law == "log" else low + (high - low) * share
    return float(f"{value:.3g}")


def share_of(range_: Range, value: Any) -> float | None:
    """The inverse of `point`; None for choices, and for values that the range cannot represent."""
    ((law, values),) = range_.items()
    if law == "choice" or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high = float(values[0]), float(values[1])
    if law == "linear":
        return (value - low) / (high - low)
    return math.log(value / low) / math.log(high / low) if value > 0 else None


def edge_of(range_: Range, value: Any, strata: int) -> int:
    """-1 or 1 if `value` lies in the lowest or highest of `strata` equal parts of the range, else 0."""
    share = share_of(range_, value)
    if share is None or strata < 3:
        return 0
    return -1 if -1e-9 <= share < 1 / strata else 1 if 1 - 1 / strata < share <= 1 + 1e-9 else 0


def widened(range_: Range, side: int) -> Range:
    """The range made longer by `WIDER` of its width, at its low end (`side` -1) or its high end (1)."""
    ((law, (low, high)),) = range_.items()
    return {law: (point(range_, -WIDER), high) if side < 0 else (low, point(range_, 1 + WIDER))}
