"""Words for runs: settings and methods that differ get names that differ, by the fields in which they do; no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def key(value: Any) -> str:
    """`value` as text that is equal where the values are."""
    return json.dumps(value, sort_keys=True, default=str)


def words(block: Any) -> str:
    """A plug-in's block as ``name(field=value, ...)``, without fields that are not set."""
    if isinstance(block, dict) and "name" in block:
        told = [f"{field}={value}" for field, value in block.items() if field != "name" and value is not None]
        return str(block["name"]) + (f"({', '.join(told)})" if told else "")
    return "" if block is None else str(block)


def together(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The texts of `columns` in a row, joined."""
    return [" · ".join(texts) for texts in zip(*(frame[column] for column in columns), strict=True)]


def told_apart(names: Iterable[str], configs: list[dict[str, Any]], places: list[str], joint: str) -> list[str]:
    """`names`, made longer where one name stands for several configs in one place, by the fields in which they differ."""
    names = list(names)
    keys = [key(config) for config in configs]
    by_place: dict[tuple[str, str], set[str]] = {}
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own, config, place in zip(names, keys, configs, places, strict=True):
        by_place.setdefault((name, place), set()).add(own)
        variants.setdefault(name, {})[own] = config
    unclear = {name for (name, _), found in by_place.items() if len(found) > 1}
    longer: dict[tuple[str, str], str] = {}
    for name in unclear:
        fields = {own: flat(config) for own, config in variants[name].items()}
        differ = differences(list(fields.values()))
        for own, one in fields.items():
            longer[name, own] = f"{name}{joint}[{', '.join(f'{field}={one.get(field)}' for field in differ)}]"
    return [longer.get((name, own), name) for name, own in zip(names, keys, strict=True)]


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of a nested mapping."""
    if not isinstance(config, dict):
        return {path: config}
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{path}.{name}" if path else str(name))
    return found


def differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The fields of flat `configs` that do not have the same value in all of them."""
    fields = sorted({field for config in configs for field in config})
    return [field for field in fields if len({key(config.get(field)) for config in configs}) > 1]


def natural(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by method (references last), setting and seed, with alpha=0.1 before alpha=0.3 before alpha=10."""

    def parts(text: str) -> list[tuple[int, float, str]]:
        pieces = re.split(r"(\d+(?:\.\d+)?)", text.casefold())
        return [(0, float(piece), "") if i % 2 else (1, 0.0, piece) for i, piece in enumerate(pieces)]

    ranks = {}
    for column in ("label", "setting"):
        ranks[column] = {text: i for i, text in enumerate(sorted(frame[column].unique(), key=lambda t: (parts(t), t)))}
    order = frame.assign(label=frame["label"].map(ranks["label"]), setting=frame["setting"].map(ranks["setting"]))
    order = order.sort_values(["reference", "setting", "label", "seed", "run"], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)
