"""A cache for objects that the runs of one process share: samples, frozen backbone, images, features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_cache: dict[
    str, tuple[Any, Any]
] = {}  # {kind: (key, value)}. Runs come in the order of their sweep, so one value is enough


def cached(kind: str, key: Any, make: Callable[[], T]) -> T:
    """The result of `make()`, from the cache if the last value of this kind had the same key. Callers must not change it."""
    if kind not in _cache or _cache[kind][0] != key:
        _cache.pop(kind, None)  # before the new value is made, so that memory need not hold both
        _cache[kind] = key, make()
    value: T = _cache[kind][1]
    return value


def clear() -> None:
    """Empty the cache, for example after memory ran out."""
    _cache.clear()
