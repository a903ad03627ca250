"""Names for runs in reports: settings and methods that differ get different names, which list the differing fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def key(value: Any) -> str:
    """`value` as text; equal values give equal texts."""
    return json.dumps(value, sort_keys=True, default=str)


def words(block: Any) -> str:
    """A plug-in's block as ``name(field=value, ...)``, without unset fields."""
    if isinstance(block, dict) and "name" in block:
        fields = [f"{field}={value}" for field, value in block.items() if field != "name" and value is not None]
        return str(block["name"]) + (f"({', '.join(fields)})" if fields else "")
    return "" if block is None else str(block)


def together(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The texts of `columns`, joined for each row."""
    return [" · ".join(texts) for texts in zip(*(frame[column] for column in columns), strict=True)]


def made_distinct(names: Iterable[str], configs: list[dict[str, Any]], places: list[str], joint: str) -> list[str]:
    """`names`, one for each config, extended if several configs of one place have the same name.

    The extension follows `joint` and lists the fields in which the configs of that name differ.
    """
    names = list(names)
    keys = [key(config) for config in configs]
    keys_by_place: dict[tuple[str, str], set[str]] = {}
    configs_by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for name, config_key, config, place in zip(names, keys, configs, places, strict=True):
        keys_by_place.setdefault((name, place), set()).add(config_key)
        configs_by_name.setdefault(name, {})[config_key] = config
    ambiguous = {name for (name, _), config_keys in keys_by_place.items() if len(config_keys) > 1}
    extended: dict[tuple[str, str], str] = {}
    for name in ambiguous:
        flat_configs = {config_key: flat(config) for config_key, config in configs_by_name[name].items()}
        fields = differences(list(flat_configs.values()))
        for config_key, config in flat_configs.items():
            values = ", ".join(f"{field}={config.get(field)}" for field in fields)
            extended[name, config_key] = f"{name}{joint}[{values}]"
    return [extended.get((name, config_key), name) for name, config_key in zip(names, keys, strict=True)]


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of a nested mapping."""
    if not isinstance(config, dict):
        return {path: config}
    values: dict[str, Any] = {}
    for name, value in config.items():
        values |= flat(value, f"{path}.{name}" if path else str(name))
    return values


def differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The fields whose values differ between flat `configs`."""
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
