"""Short names of settings: the dataset, and the varying fields of other blocks. A report gives the full text once."""

from __future__ import annotations

import re
from collections.abc import Sequence

JOINT = " · "  # between the blocks of a setting
FIELD = re.compile(r"([\w.]+)=([^,()\[\]]*(?:\[[^\]]*\])?)")


def short_settings(texts: Sequence[str]) -> dict[str, str]:
    """{full text: short name}; texts are blocks like ``name(field=value, ...)`` joined by JOINT.

    A block keeps its name and the values of the fields in which blocks of this name differ. A partition with a single
    field keeps that field. If short names would collide, or a text does not have that form, the full text is used.
    """
    split = [text.split(JOINT) for text in texts]
    variants: dict[tuple[int, str], list[dict[str, str]]] = {}
    for blocks in split:
        for place, block in enumerate(blocks):
            variants.setdefault((place, _name(block)), []).append(_fields(block))
    short = [JOINT.join(_short(place, block, variants) for place, block in enumerate(blocks)) for blocks in split]
    clash = {name for name in short if short.count(name) > 1}
    return {text: text if name in clash else name for text, name in zip(texts, short, strict=True)}


def _name(block: str) -> str:
    return block.partition("(")[0]


def _fields(block: str) -> dict[str, str]:
    return dict(FIELD.findall(block.partition("(")[2]))


def _short(place: int, block: str, variants: dict[tuple[int, str], list[dict[str, str]]]) -> str:
    name, fields = _name(block), _fields(block)
    others = variants[place, name]
    kept = [field for field in fields if len({other.get(field) for other in others}) > 1]
    if place > 0 and len(fields) == 1:
        kept = list(fields)
    if not block.startswith(name + "("):
        return block
    if len(kept) == 1:
        return f"{name} {fields[kept[0]]}"
    return " ".join([name, *(f"{field}={fields[field]}" for field in kept)])
