"""Expands `base`, `grid`, `with:` and the settings of the command line into one mapping per run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fedbench.plan.config import RunConfig
from fedbench.plan.mistakes import Mistakes, shown
from fedbench.plan.plugins import PLUGIN_KINDS
from fedbench.plan.yaml_reader import YamlError, parse_yaml

MOST_RUNS = 100_000
SECTIONS = ("name", "base", "grid", "tune", "cluster", "machine")  # of a sweep file
Override = tuple[str, Any]  # (dotted key of a run, value)


def set_path(tree: dict[str, Any], dotted: str, value: Any, mistakes: Mistakes, merge: bool = False) -> None:
    """Set the value at the path `dotted` of `tree`. With `merge`, a mapping is merged into the existing mapping."""
    *path, last = str(dotted).split(".")
    for part in path:
        inner = tree.setdefault(part, {})
        if isinstance(inner, str) and part in PLUGIN_KINDS:
            inner = tree[part] = {"name": inner}
        if not isinstance(inner, dict):
            return mistakes.add(str(dotted), f"{part} is {shown(inner)} and has no keys")
        tree = inner
    named = isinstance(value, dict) and "name" in value  # a named block is complete: its fields belong to its name
    if merge and not named and isinstance(value, dict) and isinstance(tree.get(last), dict):
        tree[last] = tree[last] | value
    else:
        tree[last] = value


def apply_settings(content: dict[str, Any], settings: Iterable[str], mistakes: Mistakes) -> list[Override]:
    """Apply ``key=value`` texts to the sections of `content`, and return those that override every run.

    A key of `cluster`, `machine` or `tune` changes that section, and ``grid.key`` replaces a list of the grid. Any other
    key belongs to a run and replaces the grid's whole list for it.
    """
    for_all_runs: list[Override] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            mistakes.add(f"--set {setting}", "expected key=value")
            continue
        try:
            value = parse_yaml(text)
        except YamlError as error:
            mistakes.add(f"--set {shown(setting)}", f"not a YAML value: {' '.join(str(error).split())}")
            continue
        section, *inside = name.split(".")
        if section in ("cluster", "machine", "tune"):
            set_path(content, name, value, mistakes)
        elif section == "grid" and inside:
            content["grid"][".".join(inside)] = value
        elif section == "name" and not inside:
            content["name"] = value
        elif mistakes.unknown_names([section], RunConfig.model_fields, "--set"):
            content["grid"].pop(name, None)
            for_all_runs.append((name, value))
    return for_all_runs


def checked_grid(grid: dict[str, Any], mistakes: Mistakes) -> dict[str, list[Any]]:
    """`grid` with a list for every key, and with no more runs than `MOST_RUNS`."""
    lists: dict[str, list[Any]] = {}
    for key, values in grid.items():
        if isinstance(values, list) and values:
            lists[key] = values
        else:
            mistakes.add(f"grid.{key}", f"expected a list with at least one value, found {shown(values)}")
            lists[key] = [values]
    count = math.prod(len(values) for values in lists.values())
    if count > MOST_RUNS:
        product = " x ".join(f"{len(values):,}" for values in lists.values())
        mistakes.add("grid", f"{product} = {count:,} runs; a sweep has at most {MOST_RUNS:,}")
        return {key: values[:1] for key, values in lists.items()}
    return lists


def expand(
    base: dict[str, Any], grid: dict[str, list[Any]], for_all_runs: Sequence[Override], mistakes: Mistakes
) -> Iterator[dict[str, Any]]:
    """`base` with every combination of the grid's values, overlaid by the values' ``with:`` and then by the settings."""
    for combination in itertools.product(*grid.values()):
        run: dict[str, Any] = {}
        overlays: list[Override] = []
        for key, value in [*base.items(), *zip(grid, combination, strict=True)]:
            if isinstance(value, dict) and "with" in value:
                value = dict(value)
                overlay = value.pop("with") or {}
                if isinstance(overlay, dict):
                    overlays.extend(overlay.items())
                else:
                    mistakes.add(f"{key}.with", f"expected a mapping, found {shown(overlay)}")
            set_path(run, key, _copy(value), mistakes, merge=True)
        for key, value in overlays:
            if str(key).split(".")[0] in RunConfig.model_fields:
                set_path(run, key, _copy(value), mistakes, merge=True)
            else:
                mistakes.unknown_names([str(key)], RunConfig.model_fields, "with")
        for key, value in for_all_runs:
            set_path(run, key, _copy(value), mistakes)
        yield run


def _copy(value: Any) -> Any:
    """A copy of mappings and lists of plain values."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
