"""Lists methods and aggregations with name, summary, fields and citation, all taken from the plug-ins."""

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
from fedbench.cli.markdown import table
from fedbench.cli.options import add_plugins
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
COMMON = tuple(field.name for field in dataclasses.fields(Method))  # fields that every method has, listed once
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
WORDS = {bool: "true | false", str: "text", Path: "path", type(None): "null"}  # as YAML calls them


@dataclass(frozen=True)
class Field:
    """A hyper-parameter: its default, its allowed values and its meaning."""

    name: str
    default: Any
    allowed: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """A plug-in in the listing. ``sentence``: the first paragraph of its file's header; ``about``: the rest.

    ``fidelity``: how close a method or an aggregation is to its source; "" for other plug-ins.
    """

    kind: Kind
    name: str
    family: str
    reference: bool
    sentence: str
    citation: str
    fidelity: str
    fields: tuple[Field, ...]
    about: str


def listing(available: Plugins) -> list[Entry]:
    """All methods by family, references last in each family, then all aggregations."""
    methods = [entry("method", name, cls) for name, cls in available.classes["method"].items()]
    families = list(dict.fromkeys(["global", *sorted(method.family for method in methods)]))
    methods.sort(key=lambda method: (families.index(method.family), method.reference, method.name))
    return methods + [entry("aggregation", name, cls) for name, cls in available.classes["aggregation"].items()]


def entry(kind: Kind, name: str, cls: Any) -> Entry:
    """The entry of a plug-in, from its file and class. The family of a plug-in that is not a method is its kind."""
    header = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    sentence, _, about = header.strip().partition("\n\n")
    family, reference = getattr(cls, "family", kind), getattr(cls, "reference", False)
    return Entry(
        kind=kind,
        name=name,
        family=family,
        reference=reference,
        sentence=" ".join(sentence.split()),
        citation=cls.citation,
        fidelity=getattr(cls, "fidelity", ""),
        fields=fields_of(cls),
        about=about,
    )


def fields_of(cls: Any) -> tuple[Field, ...]:
    """The fields of a plug-in's class in their order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    made = []
    for field in dataclasses.fields(cls):
        default = REQUIRED if field.default is dataclasses.MISSING else field.default
        made.append(Field(field.name, default, allowed_values(hints[field.name]), field.metadata.get("meaning", "")))
    return tuple(made)


def allowed_values(hint: Any, limits: Iterable[Any] = ()) -> str:
    """The allowed values of a field, from its annotation: choices, or the type with its bounds and those in `limits`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is typing.Annotated:
        return allowed_values(inner[0], [item for part in inner[1:] for item in getattr(part, "metadata", [part])])
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return f"list of {allowed_values(inner[0]).replace(' | ', ', ')}"
    if inner:
        return " | ".join(allowed_values(part, () if part is type(None) else limits) for part in inner)
    bounds = [
        f"{sign} {getattr(item, name)}"
        for item in limits
        for kind, (name, sign) in BOUNDS.items()
        if type(item) is kind
    ]
    return " ".join([str(WORDS.get(hint) or getattr(hint, "__name__", hint)), ", ".join(bounds)]).strip()


def as_yaml(value: Any) -> str:
    """A default as written in a sweep file."""
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()


def as_text(entries: Iterable[Entry]) -> str:
    """The listing for a terminal: one field per line, the fields of all methods once at the end."""
    lines = []
    for plugin in entries:
        mark = ", a reference" if plugin.reference and plugin.family != "reference" else ""
        lines += [
            f"{plugin.name}  ({plugin.family}{mark})",
            *_wrapped(plugin.sentence, "    "),
            f"    {plugin.citation} ({plugin.fidelity})",
        ]
        for field in plugin.fields:
            if field.name not in COMMON:
                lines += _described(field)
        lines.append("")
    lines += ["Every method has:", *(line for field in fields_of(Method) for line in _described(field))]
    return "\n".join(lines).rstrip() + "\n"


def _described(field: Field) -> list[str]:
    return [f"      {field.name} = {as_yaml(field.default)}    [{field.allowed}]", *_wrapped(field.meaning, " " * 10)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=indent)


def as_markdown(entries: Iterable[Entry]) -> str:
    """A Markdown table; † marks references."""
    rows = [(f"`{p.name}`" + " †" * p.reference, p.family, p.sentence, p.citation, p.fidelity) for p in entries]
    return table(("name", "family", "what", "source", "fidelity"), rows)


def parser(program: str = "fedbench methods") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="List methods and aggregations.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("names", nargs="*", metavar="NAME", help="list only these")
    add_plugins(options)
    form = options.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON, for scripts")
    form.add_argument("--markdown", action="store_true", help="a Markdown table")
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench methods") -> int:
    """Print the listing and return the exit code."""
    options = parser(program).parse_args(arguments)
    try:
        entries = listing(plugins(options.plugins))
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    names = [entry.name for entry in entries]
    if unknown := [name for name in options.names if name not in names]:
        sys.stderr.write(f"error: no method or aggregation is called {unknown[0]!r}; there are {', '.join(names)}\n")
        return MISTAKE
    entries = [entry for entry in entries if not options.names or entry.name in options.names]
    if options.json:
        text = json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2, default=str) + "\n"
    elif options.markdown:
        text = as_markdown(entries)
    else:
        text = as_text(entries)
    sys.stdout.write(text)
    return DONE
