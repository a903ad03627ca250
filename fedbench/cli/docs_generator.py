"""What the pages take from the code - plug-ins, keys of a sweep file, metrics - put between the markers of each page."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from fedbench.base.home import ROOT
from fedbench.cli.list_methods import (
    REQUIRED,
    Entry,
    Field,
    as_markdown,
    as_yaml,
    entry,
    fields_of,
    legal,
    listing,
    table,
)
from fedbench.data import Archive, Dataset, Facts, Partitioner
from fedbench.method import Aggregation, Method
from fedbench.plan.config import Block, RunConfig
from fedbench.plan.plugins import PLUGIN_KINDS, Kind, Plugins, plugins
from fedbench.report.tables.metrics import METRICS

SAME, STALE = 0, 1
BEGIN, END = "<!-- made by `make docs` from the code -->", "<!-- end of what `make docs` makes -->"
BASES = {"method": Method, "aggregation": Aggregation, "dataset": Dataset, "partition": Partitioner}
PAGE_OF: dict[Kind, str] = {
    "method": "methods",
    "aggregation": "aggregations",
    "dataset": "datasets",
    "partition": "partitioners",
}


def pages() -> dict[str, Callable[[Plugins], str]]:
    """{page: what stands between its markers}."""
    found: dict[str, Callable[[Plugins], str]] = {
        "README.md": readme,
        "docs/sweep_file.md": lambda _: "\n".join(_sweep_file()),
        "docs/metrics.md": lambda _: _metrics(),
    }
    for kind, page in PAGE_OF.items():
        found[f"docs/{page}.md"] = partial(_reference, kind)
    return found


# -- plug-ins --------------------------------------------------------------------------------------------------------------
def readme(found: Plugins) -> str:
    """Methods and aggregations, datasets, partitioners: a table each, with the source of every row."""
    parts = [linked(as_markdown(listing(found)))]
    for kind, title in (("dataset", "dataset"), ("partition", "partitioner")):
        rows = [(f"`{one.name}`", one.sentence, linked(one.citation)) for one in _entries(kind, found)]  # type: ignore[arg-type]
        parts.append(table((title, "what", "source"), rows))
    return "\n".join(parts)


def _entries(kind: Kind, found: Plugins) -> list[Entry]:
    if kind in ("method", "aggregation"):
        return [one for one in listing(found) if one.kind == kind]
    return [entry(kind, name, cls) for name, cls in found.classes[kind].items()]


def _reference(kind: Kind, found: Plugins) -> str:
    return "\n".join(_chapters(kind, found))


def _chapters(kind: Kind, found: Plugins) -> Iterator[str]:
    """Every plug-in of a kind: its header, source, and fields; the fields that all of them have once, at the end."""
    base: Any = BASES[kind]
    common = {field.name: field for field in fields_of(base)}
    family = ""
    for one in _entries(kind, found):
        if kind == "method" and one.family != family:
            family = one.family
            yield f"## {family[0].upper()}{family[1:]}\n"
        cls = found.classes[kind][one.name]
        yield f"{'###' if kind == 'method' else '##'} {one.name}{' †' * one.reference}\n"
        yield f"{prose(one.sentence)}\n"
        yield f"Cite: {linked(one.citation)}\n"
        if kind == "dataset":
            yield from _facts(cls)
        yield from (f"{part}\n" for part in _paragraphs(one.about))
        own = [field for field in one.fields if field != common.get(field.name)]
        yield _fields(own) if own else "No fields of its own.\n"
    if common:
        yield f"## Fields of every {kind if kind != 'partition' else 'partitioner'}\n"
        if kind == "partition":
            yield "`file` has none of these.\n"
        yield _fields(common.values())


def _facts(cls: type[Dataset]) -> Iterator[str]:
    facts: Facts | None = cls.facts
    if facts is not None:
        counts = (
            (facts.images, "images"),
            (facts.classes, "classes"),
            (facts.domains, "domains"),
            (facts.users, "users"),
        )
        size = ", ".join(f"{count:,} {name}" for count, name in counts if count)
        yield f"Size: {size}." + (f" Page: {linked(facts.page)}" if facts.page else "") + "\n"
    if cls.licence:
        yield f"Licence: {linked(cls.licence)}\n"
    if cls.archives:
        yield table(("file", "size", "where from"), (_archive(archive) for archive in cls.archives))


def _archive(archive: Archive) -> tuple[str, str, str]:
    size = f"{archive.size / 1e6:,.0f} MB" if archive.size else ""
    return f"`{archive.name}`", size or archive.remark or "not stated", linked(archive.url) or "by hand"


def _fields(fields: Iterable[Field]) -> str:
    rows = [
        (
            f"`{one.name}`",
            code(one.legal),
            REQUIRED if one.default == REQUIRED else code(as_yaml(one.default)),
            one.meaning,
        )
        for one in fields
    ]
    return table(("field", "legal", "default", "meaning"), rows)


# -- the sweep file --------------------------------------------------------------------------------------------------------
def _sweep_file() -> Iterator[str]:
    """Every key of a run, then of each block."""
    models = sorted(Block.__subclasses__(), key=lambda model: model is not RunConfig)
    for model in models:
        name = "base and grid" if model is RunConfig else model.__name__.lower()
        yield f"### {name}\n"
        yield f"{' '.join((model.__doc__ or '').split())}\n"
        yield table(("key", "legal", "default", "meaning"), (_key(*one) for one in model.model_fields.items()))


def _key(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    what = code(legal(field.annotation, field.metadata))
    default = REQUIRED if field.is_required() else ""
    if _model(field) is not None:
        what = f"[mapping](#{name})"
    elif name in PLUGIN_KINDS:
        what = f"[`{{name: ...}}` or a name]({PAGE_OF[name]}.md)"
    if not default and _model(field) is None:
        value = field.get_default(call_default_factory=True)
        default = code(as_yaml(value))
    return f"`{name}`", what, default, field.description or ""


def _model(field: FieldInfo) -> type[Block] | None:
    return field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Block) else None


# -- metrics ---------------------------------------------------------------------------------------------------------------
def _metrics() -> str:
    rows = [(f"`{one.name}`", one.title, "yes" if one.ranked else "", one.meaning) for one in METRICS]
    return table(("name in records", "title in tables", "ranked", "what it is"), rows)


# -- text ------------------------------------------------------------------------------------------------------------------
def code(text: str) -> str:
    """`text` between backticks, choices each for themselves: a bar between backticks is no end of a cell everywhere."""
    return " | ".join(f"`{part}`" for part in text.split(" | ")) if text else ""


def prose(text: str) -> str:
    """A docstring's text as Markdown: what looks like a tag is none, and addresses are links."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(part if part.startswith("`") else linked(part.replace("<", "&lt;")) for part in parts)


def linked(text: str) -> str:
    """`text` with its addresses and arXiv numbers as links."""
    text = re.sub(r"https?://[^\s,;)|]+", lambda found: f"<{found[0]}>", text)
    return re.sub(r"arXiv[: ](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; a table drawn with lines of = becomes one."""
    for part in filter(None, (part.strip("\n") for part in text.split("\n\n"))):
        if part.startswith("=="):
            head, *rows = (re.split(r" {2,}", line) for line in part.splitlines() if not line.startswith("="))
            yield table(head, rows)
        else:
            yield prose(part)


def with_part(page: str, part: str) -> str:
    """`page` with what stands between the markers replaced. Raises ValueError where it has no markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


# -- the command line ------------------------------------------------------------------------------------------------------
def stale(home: Path = ROOT) -> dict[Path, str]:
    """{page: what it should be} of those pages that do not say what the code says. Raises ValueError and OSError."""
    found, changed = plugins(), {}
    for name, part in pages().items():
        page = home / name
        text = page.read_text()
        if (new := with_part(text, part(found))) != text:
            changed[page] = new
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Say which pages are stale, or write them; returns the exit code: 0, or 1 where some are stale."""
    options = argparse.ArgumentParser(prog="python -m fedbench.cli.docs_generator", description=(__doc__ or "").strip())
    options.add_argument("--write", action="store_true", help="write the pages; else only say which are stale")
    given = options.parse_args(arguments)
    changed = stale()
    for page, text in changed.items():
        sys.stdout.write(f"{page.relative_to(ROOT)}: {'written' if given.write else 'stale'}\n")
        if given.write:
            page.write_text(text)
    return STALE if changed and not given.write else SAME


if __name__ == "__main__":
    sys.exit(main())
