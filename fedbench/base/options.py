"""`option`: a field of a plug-in with its meaning, which listings and reference pages print."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, meaning: str, **metadata: Any) -> Any:
    """A dataclass field with a `default` and a `meaning`.

    ``always_shown=True``: tables show its value even if it is the default. ``needs=(words, condition)``: it has an effect
    only if ``condition(plug-in)`` holds, which `words` describe; a sweep file that sets it in vain is refused.
    """
    return field(default=default, metadata={"meaning": meaning, **metadata})
