"""The listing of plug-ins, made from the plug-ins themselves: name, sentence, fields, citation."""

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

import yaml
from annotated_types import Ge, Gt, Le, Lt

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.method import Method
from fedbench.plan.plugins import Kind, PluginError, Plugins, plugins

DONE, MISTAKE = 0, 2
EPILOG = """\
examples:
  %(prog)s
  %(prog)s pep_fedpt fedprox
  %(prog)s --plugins mine/ --json
"""
REQUIRED = "required"  # the default of a field that has none
COMMON = tuple(field.name for field in dataclasses.fields(Method))  # fields of every method, told once
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
WORDS = {bool: "true | false", str: "text", Path: "path", type(None): "null"}  # as YAML calls them


@dataclass(frozen=True)
class Field:
    """A hyper-parameter: its default, what it may be, and what it means."""

    name: str
    default: Any
    legal: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """A plug-in as the listing shows it; ``sentence``: the first paragraph of its file's header, ``about``: the rest."""

    kind: Kind
    name: str
    family: str
    reference: bool
    sentence: str
    citation: str
    fields: tuple[Field, ...]
    about: str


def listing(found: Plugins) -> list[Entry]:
    """All methods, family by family and references last in each, then all aggregations."""
    methods = [entry("method", name, cls) for name, cls in found.classes["method"].items()]
    families = list(dict.fromkeys(["global", *sorted(one.family for one in methods)]))
    methods.sort(key=lambda one: (families.index(one.family), one.reference, one.name))
    return methods + [entry("aggregation", name, cls) for name, cls in found.classes["aggregation"].items()]


def entry(kind: Kind, name: str, cls: Any) -> Entry:
    """What a plug-in's file and class say of it; the family of what is no method is its kind."""
    header = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    sentence, _, about = header.strip().partition("\n\n")
    family, reference = getattr(cls, "family", kind), getattr(cls, "reference", False)
    return Entry(kind, name, family, reference, " ".join(sentence.split()), cls.citation, fields_of(cls), about)


def fields_of(cls: Any) -> tuple[Field, ...]:
    """The fields of a plug-in's class in their order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    made = []
    for field in dataclasses.fields(cls):
        default = REQUIRED if field.default is dataclasses.MISSING else field.default
        made.append(Field(field.name, default, legal(hints[field.name]), field.metadata.get("meaning", "")))
    return tuple(made)


def legal(hint: Any, limits: Iterable[Any] = ()) -> str:
    """What a field may be, from its annotation: the choices, or the type with its bounds; `limits` are further bounds."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is typing.Annotated:
        return legal(inner[0], [item for part in inner[1:] for item in getattr(part, "metadata", [part])])
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return f"list of {legal(inner[0]).replace(' | ', ', ')}"
    if inner:
        return " | ".join(legal(part, () if part is type(None) else limits) for part in inner)
    bounds = [
        f"{sign} {getattr(item, name)}"
        for item in limits
        for kind, (name, sign) in BOUNDS.items()
        if type(item) is kind
    ]
    return " ".join([str(WORDS.get(hint) or getattr(hint, "__name__", hint)), ", ".join(bounds)]).strip()


def as_yaml(value: Any) -> str:
    """A default as a sweep file would give it."""
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()


def as_text(entries: Iterable[Entry]) -> str:
    """For a terminal: every field on a line of its own, those of all methods once at the end."""
    lines = []
    for one in entries:
        mark = ", a reference" if one.reference and one.family != "reference" else ""
        lines += [f"{one.name}  ({one.family}{mark})", *_wrapped(one.sentence, "    "), f"    {one.citation}"]
        for field in one.fields:
            if field.name not in COMMON:
                lines += _told(field)
        lines.append("")
    lines += ["Every method has:", *(line for field in fields_of(Method) for line in _told(field))]
    return "\n".join(lines).rstrip() + "\n"


def _told(field: Field) -> list[str]:
    return [f"      {field.name} = {as_yaml(field.default)}    [{field.legal}]", *_wrapped(field.meaning, " " * 10)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=indent)


def as_markdown(entries: Iterable[Entry]) -> str:
    """The table of the README; † marks references."""
    rows = [(f"`{one.name}`" + " †" * one.reference, one.family, one.sentence, one.citation) for one in entries]
    return table(("name", "family", "what", "source"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


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
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "python -m fedbench.methods") -> int:
    """Print the listing and return the exit code."""
    given = parser(program).parse_args(arguments)
    try:
        entries = listing(plugins(given.plugins))
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    if unknown := [name for name in given.names if name not in {one.name for one in entries}]:
        sys.stderr.write(f"error: no {unknown[0]!r}; there are {', '.join(one.name for one in entries)}\n")
        return MISTAKE
    entries = [one for one in entries if not given.names or one.name in given.names]
    if given.json:
        text = json.dumps([dataclasses.asdict(one) for one in entries], indent=2, default=str) + "\n"
    elif given.markdown:
        text = as_markdown(entries)
    else:
        text = as_text(entries)
    sys.stdout.write(text)
    return DONE
