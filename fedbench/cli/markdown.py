"""Converts texts of docstrings and fields to Markdown: tables, code and links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: str) -> str:
    """`text` in backticks, each choice separately: some renderers end a table cell at a bar between backticks."""
    return " | ".join(f"`{part}`" for part in text.split(" | ")) if text else ""


def prose(text: str) -> str:
    """A docstring's text as Markdown: tags are escaped, addresses become links."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(part if part.startswith("`") else linked(part.replace("<", "&lt;")) for part in parts)


def linked(text: str) -> str:
    """`text` with its addresses and arXiv numbers as links."""
    text = re.sub(r"https?://[^\s,;)|]+", lambda match: f"<{match[0]}>", text)
    return re.sub(r"arXiv[: ](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; a table drawn with lines of = becomes one."""
    for part in filter(None, (part.strip("\n") for part in text.split("\n\n"))):
        if part.startswith("=="):
            head, *rows = (re.split(r" {2,}", line) for line in part.splitlines() if not line.startswith("="))
            yield table(head, rows)
        else:
            yield prose(part)
