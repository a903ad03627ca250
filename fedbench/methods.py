"""The listing of methods and aggregations, made from the plug-ins themselves: name, sentence, fields, citation."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from fedbench.method import Method
from fedbench.plugins import PluginError, Plugins, plugins

DONE, MISTAKE = 0, 2
EPILOG = """\
examples:
  %(prog)s
  %(prog)s pep_fedpt fedprox
  %(prog)s --plugins mine/ --json
"""
BEGIN, END = "<!-- made by `make docs` from the plug-ins -->", "<!-- end of what `make docs` makes -->"
COMMON = tuple(field.name for field in dataclasses.fields(Method))  # fields of every method, told once
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


@dataclass(frozen=True)
class Field:
    """A hyper-parameter: its default, what it may be, and what it means."""

    name: str
    default: Any
    legal: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """A plug-in as the listing shows it; ``sentence``: the first paragraph of its file's header."""

    kind: Literal["method", "aggregation"]
    name: str
    family: str
    reference: bool
    sentence: str
    citation: str
    fields: tuple[Field, ...]


def listing(found: Plugins) -> list[Entry]:
    """All methods, family by family and references last in each, then all aggregations."""
    methods = [_entry("method", name, cls) for name, cls in found.classes["method"].items()]
    families = list(dict.fromkeys(["global", *sorted(entry.family for entry in methods)]))
    methods.sort(key=lambda entry: (families.index(entry.family), entry.reference, entry.name))
    return methods + [_entry("aggregation", name, cls) for name, cls in found.classes["aggregation"].items()]


def _entry(kind: Literal["method", "aggregation"], name: str, cls: Any) -> Entry:
    header = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    sentence = " ".join(header.strip().split("\n\n")[0].split())
    family = getattr(cls, "family", "aggregation")
    return Entry(kind, name, family, getattr(cls, "reference", False), sentence, cls.citation, fields_of(cls))


def fields_of(cls: Any) -> tuple[Field, ...]:
    """The fields of a plug-in's class in their order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    made = []
    for field in dataclasses.fields(cls):
        default = "required" if field.default is dataclasses.MISSING else field.default
        made.append(Field(field.name, default, legal(hints[field.name]), field.metadata.get("meaning", "")))
    return tuple(made)


def legal(hint: Any) -> str:
    """What a field may be, from its annotation: the choices, or the type with its bounds."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is typing.Annotated:
        metadata = [item for part in inner[1:] for item in getattr(part, "metadata", [part])]
        bounds = [
            f"{sign} {getattr(item, name)}"
            for item in metadata
            for kind, (name, sign) in BOUNDS.items()
            if type(item) is kind
        ]
        return " ".join([legal(inner[0]), ", ".join(bounds)]).strip()
    if inner and origin is not tuple:
        return " | ".join("none" if part is type(None) else legal(part) for part in inner)
    return str(getattr(hint, "__name__", hint)) if origin is None else str(hint)


def as_text(entries: Iterable[Entry]) -> str:
    """For a terminal: every field on a line of its own, those of all methods once at the end."""
    lines = []
    for entry in entries:
        mark = ", a reference" if entry.reference and entry.family != "reference" else ""
        lines += [f"{entry.name}  ({entry.family}{mark})", *_wrapped(entry.sentence, "    "), f"    {entry.citation}"]
        for field in entry.fields:
            if field.name not in COMMON:
                lines += _told(field)
        lines.append("")
    lines += ["Every method has:", *(line for field in fields_of(Method) for line in _told(field))]
    return "\n".join(lines).rstrip() + "\n"


def _told(field: Field) -> list[str]:
    return [f"      {field.name} = {field.default}    [{field.legal}]", *_wrapped(field.meaning, " " * 10)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=indent)


def as_markdown(entries: Iterable[Entry]) -> str:
    """The table of the README; † marks references."""
    lines = ["| name | family | what | fields | source |", "|---|---|---|---|---|"]
    for entry in entries:
        own = [f"`{field.name}: {field.default}`" for field in entry.fields if field.name not in COMMON]
        name = f"`{entry.name}`" + (" †" if entry.reference else "")
        cells = (name, entry.family, entry.sentence, ", ".join(own) or "-", entry.citation)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(page: str, table: str) -> str:
    """`page` with what stands between the markers replaced. Raises ValueError where it has no markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def parser(program: str = "python -m fedbench.methods") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="List methods and aggregations.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("names", nargs="*", metavar="NAME", help="only these; all if not given")
    options.add_argument("--plugins", nargs="+", action="extend", default=[], metavar="DIR", help="your own plug-ins")
    form = options.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts")
    form.add_argument("--markdown", action="store_true", help="a table")
    form.add_argument("--write", type=Path, metavar="PAGE.md", help="put the table between the markers of a page")
    return options


def main(arguments: Sequence[str] | None = None, program: str = "python -m fedbench.methods") -> int:
    """Print the listing and return the exit code."""
    given = parser(program).parse_args(arguments)
    try:
        entries = listing(plugins(given.plugins))
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    if unknown := [name for name in given.names if name not in {entry.name for entry in entries}]:
        sys.stderr.write(f"error: no {unknown[0]!r}; there are {', '.join(entry.name for entry in entries)}\n")
        return MISTAKE
    entries = [entry for entry in entries if not given.names or entry.name in given.names]
    if given.json:
        text = json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2, default=str) + "\n"
    elif given.markdown:
        text = as_markdown(entries)
    elif given.write:
        try:
            page = with_table(given.write.read_text(), as_markdown(entries))
        except (OSError, ValueError) as error:
            sys.stderr.write(f"error: {given.write}: {error}\n")
            return MISTAKE
        given.write.write_text(page)
        text = ""
    else:
        text = as_text(entries)
    sys.stdout.write(text)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
