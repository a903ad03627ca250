"""`option`: a field of a plug-in with its meaning, which listings and reference pages print."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, meaning: str, **metadata: Any) -> Any:
    """A dataclass field with a `default` and a `meaning`.

    ``always_shown=True``: tables show its value even if it is the default. ``needs=(words, condition)``: it has an effect
    only if ``condition(plug-in)`` holds, which `words` describe; a sweep file that sets it in vain is refused.
    ``added_later=True``: the plug-in once lacked it, and its default changes nothing. A run that has the default keeps the
    identity that it had before, so finished and published runs stay finished.
    """
    return field(default=default, metadata={"meaning": meaning, **metadata})
