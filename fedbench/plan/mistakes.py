"""Collects the mistakes of a sweep file, to report all of them at once in a message of bounded length."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError

from fedbench.plan.config import ConfigError

SHOWN = 40  # most mistakes in a message; the others are counted
NAMED = 10  # most unknown names of one place in a message
VALUE_LENGTH = 120  # most characters of a value in a message


class Mistakes:
    """An ordered collection of mistakes; a mistake that many runs share is kept once."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, where: str, what: str) -> None:
        """Add a mistake at the path `where` of the sweep file."""
        self._texts[f"{where}: {what}" if where else what] = None

    def unknown_names(self, names: Iterable[Any], legal: Collection[str], where: str) -> bool:
        """Add a mistake for each of `names` that is not legal. Returns whether all are legal."""
        unknown = [name for name in names if name not in legal]
        listed = ", ".join(legal)
        for name in unknown[:NAMED]:
            near = difflib.get_close_matches(str(name)[:VALUE_LENGTH], legal, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            self.add(where, f"unknown name {shown(name)}; {hint}legal: {listed}")
        if len(unknown) > NAMED:
            self.add(where, f"{len(unknown) - NAMED:,} more unknown names")
        return not unknown

    def explain(self, error: ValidationError, where: str) -> set[str]:
        """Add the mistakes of a pydantic error. Returns the names of the fields that have one."""
        fields = set()
        for item in error.errors(include_url=False, include_context=False):
            path = ".".join([where, *(str(part) for part in item["loc"])])
            self.add(path, f"{item['msg'].removeprefix('Value error, ')}, found {shown(item['input'])}")
            fields.add(str(item["loc"][0]) if item["loc"] else "")
        return fields

    def raise_if_any(self, source: str = "") -> None:
        """Raise ConfigError with all mistakes, if there are any."""
        if not self._texts:
            return
        texts = list(self._texts)
        lines = [f"  - {text}" for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            lines.append(f"  ... and {len(texts) - SHOWN:,} more")
        count = f"{len(texts):,} mistake{'s' if len(texts) > 1 else ''}"
        raise ConfigError(f"{source + ': ' if source else ''}{count}\n" + "\n".join(lines))


def shown(value: Any) -> str:
    """`value` for a message, shortened."""
    if isinstance(value, list | dict) and len(value) > VALUE_LENGTH:
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value):,} values"
    text = repr(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 3]}..."
