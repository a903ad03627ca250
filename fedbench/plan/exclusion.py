"""Leaves out runs of a sweep: `exclude:` lists partial settings, and a run that has all values of an entry is not done.

Runs are compared before they are checked, so that `exclude:` can leave out combinations that are not legal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fedbench.plan.checker import BLOCKS
from fedbench.plan.config import RunConfig
from fedbench.plan.expansion import set_path
from fedbench.plan.mistakes import Mistakes, shown
from fedbench.plan.plugins import PLUGIN_KINDS, Kind, Plugins


class Exclusion:
    """The checked entries of `exclude:`.

    `entries` is the value in the sweep file. Its mistakes are added to `mistakes`, and entries with mistakes match nothing.
    """

    def __init__(self, entries: Any, plugins: Plugins, mistakes: Mistakes) -> None:
        self._plugins, self._mistakes = plugins, mistakes
        self._patterns: dict[int, dict[str, Any]] = {}  # {position from 1: nested keys and values}
        self._written: dict[int, Any] = {}
        self._matched: set[int] = set()
        if entries is None:
            return
        if not isinstance(entries, list):
            mistakes.add("exclude", f"expected a list of mappings such as {{seed: 0}}, found {shown(entries)}")
            return
        for position, entry in enumerate(entries, 1):
            pattern = self._pattern(entry, f"exclude, entry {position}")
            if pattern is not None:
                self._patterns[position], self._written[position] = pattern, entry

    def kept(self, runs: Iterable[dict[str, Any]], may_match_none: Collection[str]) -> Iterator[dict[str, Any]]:
        """Those of `runs`, mappings as the file has them, that match no entry. Values not written count as defaults.

        After the last run, adds a mistake for each entry that matched no run, except those with a key in `may_match_none`.
        If there are no mistakes at all, adds one if no run was kept.
        """
        matched: set[int] = set()
        count = 0
        for run in runs:
            hits = {position for position, pattern in self._patterns.items() if self._matches(pattern, run)}
            matched |= hits
            if not hits:
                count += 1
                yield run
        for position, pattern in self._patterns.items():
            if position not in matched and not set(may_match_none) & pattern.keys():
                self._mistakes.add(
                    f"exclude, entry {position}",
                    f"{shown(self._written[position])} matches no run; a run matches if it has all of these values",
                )
        if not count and not len(self._mistakes):
            self._mistakes.add("exclude", "leaves out every run")

    def _pattern(self, entry: Any, where: str) -> dict[str, Any] | None:
        """`entry` with nested mappings in place of dotted keys; None if it has mistakes."""
        if not isinstance(entry, dict) or not entry:
            self._mistakes.add(where, f"expected a mapping with at least one key, found {shown(entry)}")
            return None
        before = len(self._mistakes)
        if not self._mistakes.unknown_names([str(key).split(".")[0] for key in entry], RunConfig.model_fields, where):
            return None
        pattern: dict[str, Any] = {}
        for key, value in entry.items():
            if key in PLUGIN_KINDS and isinstance(value, str):
                value = {"name": value}
            set_path(pattern, key, dict(value) if isinstance(value, dict) else value, self._mistakes, merge=True)
        for key, value in pattern.items():
            self._check_fields(key, value, where)
        return pattern if len(self._mistakes) == before else None

    def _check_fields(self, key: str, value: Any, where: str) -> None:
        """Add a mistake for each key of the block `value` that the block `key` does not have."""
        place = f"{where}, {key}"
        if key in BLOCKS or key in PLUGIN_KINDS:
            if not isinstance(value, dict) or not value:
                self._mistakes.add(place, f"expected a mapping with at least one key, found {shown(value)}")
            elif key in BLOCKS:
                self._mistakes.unknown_names(value, BLOCKS[key].model_fields, place)
            else:
                self._check_plugin(key, value, place)  # type: ignore[arg-type]

    def _check_plugin(self, kind: Kind, block: Mapping[str, Any], place: str) -> None:
        classes = self._plugins.classes[kind]
        if "name" in block:
            if not self._mistakes.unknown_names([block["name"]], sorted(classes), place):
                return
            classes = {block["name"]: classes[block["name"]]}
        fields = {field.name for cls in classes.values() for field in dataclasses.fields(cls)}
        legal = ["name", *(["label"] if kind == "method" else []), *sorted(fields)]
        self._mistakes.unknown_names(block, legal, place)

    def _matches(self, pattern: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
        return all(_agrees(value, self._with_defaults(key, run)) for key, value in pattern.items())

    def _with_defaults(self, key: str, run: Mapping[str, Any]) -> Any:
        """The value of `key` in `run`, with the defaults of its block."""
        default = RunConfig.model_fields[key].get_default(call_default_factory=True)
        value = run.get(key)
        if key in BLOCKS:
            written = value if isinstance(value, dict) else {}
            return {**default.model_dump(), **written} if value is None or isinstance(value, dict) else value
        value = default if value is None else value
        if key not in PLUGIN_KINDS:
            return value
        block = {"name": value} if isinstance(value, str) else value
        if not isinstance(block, dict):
            return block
        cls: Any = self._plugins.classes[key].get(str(block.get("name")))
        fields = dataclasses.fields(cls) if cls is not None else ()
        return {**{field.name: field.default for field in fields}, **block}


def _agrees(wanted: Any, value: Any) -> bool:
    """Whether `value` equals `wanted`; of mappings, only the keys of `wanted` count. 1 equals 1.0 but not true."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(
            key in value and _agrees(item, value[key]) for key, item in wanted.items()
        )
    if isinstance(wanted, list | tuple) and isinstance(value, list | tuple):
        return len(wanted) == len(value) and all(map(_agrees, wanted, value))
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return bool(wanted == value)
