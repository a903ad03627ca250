"""Expands `base`, `grid`, `zip`, `with:` and the settings of the command line into one mapping per run."""

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
SECTIONS = ("name", "base", "grid", "zip", "exclude", "tune", "cluster", "machine")  # of a sweep file
LISTS = ("zip", "exclude")  # sections that are lists
Override = tuple[str, Any]  # (dotted key of a run, value)
Axis = list[dict[str, Any]]  # points {dotted key: value}; the axes of a sweep multiply


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

    A key of `cluster`, `machine` or `tune` changes that section, ``grid.key`` replaces a list of the grid, and `name`, `zip`
    and `exclude` are replaced as a whole. Any other key belongs to a run and replaces the whole list that `grid` or `zip`
    has for it.
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
        elif section in ("name", *LISTS) and not inside:
            content[section] = value
        elif mistakes.unknown_names([section], RunConfig.model_fields, "--set"):
            for_all_runs.append((name, value))
    for name, _ in for_all_runs:
        for block in [content["grid"], *_zip_blocks(content)]:
            block.pop(name, None)
    return for_all_runs


def overridden(settings: Iterable[str]) -> set[str]:
    """The keys of runs that ``key=value`` texts override, without what follows a dot."""
    return {setting.partition("=")[0].removeprefix("grid.").split(".")[0] for setting in settings}


def _zip_blocks(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks of `zip` that are mappings."""
    blocks = content.get("zip")
    return [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []


def checked_axes(grid: dict[str, Any], zipped: Any, mistakes: Mistakes) -> list[Axis]:
    """One axis for each key of `grid` and each block of `zipped`, with no more runs than `MOST_RUNS`."""
    axes: list[Axis] = []
    for key, values in grid.items():
        axes.append([{key: value} for value in _values(f"grid.{key}", values, mistakes)])
    axes += _zip_axes(zipped, list(grid), mistakes)
    count = math.prod(map(len, axes))
    if count > MOST_RUNS:
        product = " x ".join(f"{len(axis):,}" for axis in axes)
        mistakes.add("grid", f"{product} = {count:,} runs; a sweep has at most {MOST_RUNS:,}")
        return [axis[:1] for axis in axes]
    return axes


def _zip_axes(zipped: Any, taken: list[str], mistakes: Mistakes) -> list[Axis]:
    """One axis for each block of `zipped`, whose lists advance together. `taken`: keys that are in `grid`."""
    if zipped is None:
        return []
    if not isinstance(zipped, list):
        mistakes.add("zip", f"expected a list of mappings of equally long lists, found {shown(zipped)}")
        return []
    axes: list[Axis] = []
    places = dict.fromkeys(taken, "grid")
    for position, block in enumerate(zipped, 1):
        where = f"zip, block {position}"
        if not isinstance(block, dict):
            mistakes.add(where, f"expected a mapping of equally long lists, found {shown(block)}")
            continue
        mistakes.unknown_names([str(key).split(".")[0] for key in block], RunConfig.model_fields, where)
        lists = {}
        for key, values in block.items():
            if key in places:
                mistakes.add(where, f"{key} is also in {places[key]}; a key may vary in one place only")
            elif str(key).split(".")[0] in RunConfig.model_fields:
                lists[key] = _values(f"{where}, {key}", values, mistakes)
        places |= dict.fromkeys(block, where)
        if len(set(map(len, lists.values()))) > 1:
            lengths = ", ".join(f"{key} has {len(values):,}" for key, values in lists.items())
            mistakes.add(where, f"lists that advance together must be equally long: {lengths}")
        if lists:
            axes.append([dict(zip(lists, point, strict=True)) for point in zip(*lists.values(), strict=False)])
    return axes


def _values(where: str, values: Any, mistakes: Mistakes) -> list[Any]:
    """`values` as a list of at least one value. Otherwise adds a mistake."""
    if isinstance(values, list) and values:
        return values
    mistakes.add(where, f"expected a list with at least one value, found {shown(values)}")
    return [values]


def expand(
    base: dict[str, Any], axes: Sequence[Axis], for_all_runs: Sequence[Override], mistakes: Mistakes
) -> Iterator[dict[str, Any]]:
    """`base` with every combination of the axes' points, overlaid by the values' ``with:`` and then by the settings."""
    for combination in itertools.product(*axes):
        run: dict[str, Any] = {}
        overlays: list[Override] = []
        for key, value in itertools.chain(base.items(), *(point.items() for point in combination)):
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
