"""What runs of one process have in common - samples, frozen backbone, images, features - is made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_kept: dict[str, tuple[Any, Any]] = {}  # {kind: (key, value)}: runs stand in the order of their sweep, so one is enough


def cached(kind: str, key: Any, make: Callable[[], T]) -> T:
    """What `make` gave for `key` the last time, or gives now; nobody may change it. Only the last of a kind is kept."""
    if kind not in _kept or _kept[kind][0] != key:
        _kept.pop(kind, None)  # before the new one is made, so that both need not fit
        _kept[kind] = key, make()
    value: T = _kept[kind][1]
    return value


def clear() -> None:
    """Keep nothing, as after memory ran out."""
    _kept.clear()
