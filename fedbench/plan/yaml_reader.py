"""Reads YAML strictly: plain values only, no guessed numbers or dates, no duplicate keys, and limits on size and depth.

Numbers are decimal, as in YAML 1.2: ``1e-4`` is a number, ``12:00:00`` and dates are text, and ``010``, which YAML 1.1 reads
as 8, is refused. Booleans are those of YAML 1.1 (``yes``, ``no``, ``on``, ``off``). Merge keys (``<<``) work.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MAX_BYTES = 1 << 20  # of a file
MAX_DEPTH = 50  # of nesting
MAX_VALUES = 200_000  # values of a file; an alias counts each time that it is used
LARGEST_INTEGER = 2**63 - 1

INTEGER = re.compile(r"[-+]?[0-9][0-9_]*\Z")
FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.(?:inf|Inf|INF))\Z
        |\.(?:nan|NaN|NAN)\Z""",
    re.VERBOSE,
)


class YamlError(ValueError):
    """A text that is not YAML of the accepted kind. The message says where and why."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises OSError if it cannot be read, YamlError if its content is refused."""
    if path.exists() and not path.is_file():
        raise OSError(None, "it is a folder" if path.is_dir() else "it is no regular file", str(path))
    if (size := path.stat().st_size) > MAX_BYTES:
        raise YamlError(f"the file has {size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"not UTF-8 text: {error}") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises YamlError."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.YAMLError as error:
        raise YamlError(str(error).replace('in "<unicode string>", ', "")) from error
    except (ValueError, RecursionError) as error:  # raised by an explicit tag such as !!int, or by the scanner
        raise YamlError(str(error)[:200]) from error


class _StrictLoader(yaml.SafeLoader):
    """A safe loader without dates, octal and base-60 numbers, and with limits."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}  # the number of values below each complete node

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            node = super().compose_node(parent, index)
            if id(node) not in self.sizes:
                raise ComposerError(None, None, f"the alias *{event.anchor} contains itself", event.start_mark)
            self._count(self.sizes[id(node)], event.start_mark)
            return node
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        before = self.values
        self._count(1, mark)
        node = super().compose_node(parent, index)
        self.sizes[id(node)] = self.values - before
        self.depth -= 1
        return node

    def _count(self, more: int, mark: Any) -> None:
        self.values += more
        if self.values > MAX_VALUES:
            raise ComposerError(None, None, f"more than {MAX_VALUES:,} values, aliases included", mark)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
                keys.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node).replace("_", "")
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits.startswith("0"):
            advice = f"write {digits.lstrip('0') or 0} for the number, or put it in quotes"
            raise ConstructorError(None, None, f"{_short(text)} begins with 0: {advice}", node.start_mark)
        if len(digits) > 19 or abs(int(text)) > LARGEST_INTEGER:
            what = f"{_short(text)} ({len(digits):,} digits) is out of the range of 64-bit integers"
            raise ConstructorError(None, None, what, node.start_mark)
        return int(text)


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}..."


_KEPT = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"
_StrictLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KEPT
}
_StrictLoader.add_constructor(f"{_TAG}int", _StrictLoader.construct_yaml_int)
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(f"{_TAG}int", INTEGER, list("-+0123456789"))
_StrictLoader.add_implicit_resolver(f"{_TAG}float", FLOAT, list("-+.0123456789"))
