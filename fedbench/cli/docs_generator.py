"""Generates parts of the documentation from the code: plug-ins, hooks, keys of a sweep file, and metrics."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from fedbench.base.home import ROOT
from fedbench.base.record_schema import columns
from fedbench.cli.hook_tables import hook_tables
from fedbench.cli.list_methods import (
    REQUIRED,
    Entry,
    Field,
    allowed_values,
    as_markdown,
    as_yaml,
    entry,
    fields_of,
    listing,
)
from fedbench.cli.markdown import code, linked, paragraphs, prose, table
from fedbench.cli.name_table import name_table
from fedbench.data import Archive, Dataset, Facts, Partitioner
from fedbench.method import Aggregation, Method
from fedbench.plan.config import Block, RunConfig
from fedbench.plan.plugins import PLUGIN_KINDS, Kind, Plugins, plugins
from fedbench.report import calibration
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
    """{page: function that generates the text between its markers}."""
    made: dict[str, Callable[[Plugins], str]] = {
        "docs/index.md": overview,
        "docs/hooks.md": lambda plugins: f"{hook_tables(plugins)}\n{name_table()}",
        "docs/sweep_file.md": lambda _: "\n".join(_sweep_file()),
        "docs/metrics.md": lambda _: _metrics(),
        "docs/verdicts.md": lambda _: calibration.as_markdown(),
    }
    for kind, page in PAGE_OF.items():
        made[f"docs/{page}.md"] = partial(_reference, kind)
    return made


# -- plug-ins --------------------------------------------------------------------------------------------------------------
def overview(available: Plugins) -> str:
    """The tables of methods and aggregations, of datasets and of partitioners, with sources."""
    parts = [linked(as_markdown(listing(available)))]
    titles: dict[Kind, str] = {"dataset": "dataset", "partition": "partitioner"}
    for kind, title in titles.items():
        rows = [(f"`{plugin.name}`", plugin.sentence, linked(plugin.citation)) for plugin in _entries(kind, available)]
        parts.append(table((title, "what", "source"), rows))
    return "\n".join(parts)


def _entries(kind: Kind, available: Plugins) -> list[Entry]:
    if kind in ("method", "aggregation"):
        return [plugin for plugin in listing(available) if plugin.kind == kind]
    return [entry(kind, name, cls) for name, cls in available.classes[kind].items()]


def _reference(kind: Kind, available: Plugins) -> str:
    return "\n".join(_chapters(kind, available))


def _chapters(kind: Kind, available: Plugins) -> Iterator[str]:
    """Every plug-in of a kind: its header, source and fields. Common fields are listed once, at the end."""
    base: Any = BASES[kind]
    common = {field.name: field for field in fields_of(base)}
    family = ""
    for plugin in _entries(kind, available):
        if kind == "method" and plugin.family != family:
            family = plugin.family
            yield f"## {family[0].upper()}{family[1:]}\n"
        cls = available.classes[kind][plugin.name]
        yield f"{'###' if kind == 'method' else '##'} {plugin.name}{' †' * plugin.reference}\n"
        yield f"{prose(plugin.sentence)}\n"
        yield f"Cite: {linked(plugin.citation)}" + (f". {plugin.fidelity.capitalize()}." * bool(plugin.fidelity)) + "\n"
        if kind == "dataset":
            yield from _facts(cls)
        yield from (f"{part}\n" for part in paragraphs(plugin.about))
        specific = [field for field in plugin.fields if field != common.get(field.name)]
        yield _fields(specific) if specific else "No further fields.\n"
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
            f"`{field.name}`",
            code(field.allowed),
            REQUIRED if field.default == REQUIRED else code(as_yaml(field.default)),
            field.meaning,
        )
        for field in fields
    ]
    return table(("field", "allowed", "default", "meaning"), rows)


# -- the sweep file --------------------------------------------------------------------------------------------------------
def _sweep_file() -> Iterator[str]:
    """Every key of a run, then of each block."""
    models = sorted(Block.__subclasses__(), key=lambda model: model is not RunConfig)
    for model in models:
        name = "base and grid" if model is RunConfig else model.__name__.removesuffix("Config").lower()
        yield f"### {name}\n"
        yield f"{' '.join((model.__doc__ or '').split())}\n"
        rows = (_key(key, field, is_run=model is RunConfig) for key, field in model.model_fields.items())
        yield table(("key", "allowed", "default", "meaning"), rows)


def _key(name: str, field: FieldInfo, is_run: bool) -> tuple[str, str, str, str]:
    """A table row for a key. Only a run's keys can be plug-ins (`seeds.partition` and `cluster.partition` are not)."""
    allowed = code(allowed_values(field.annotation, field.metadata))
    default = REQUIRED if field.is_required() else ""
    if _model(field) is not None:
        allowed = f"[mapping](#{name})"
    elif is_run and name in PLUGIN_KINDS:
        allowed = f"[`{{name: ...}}` or a name]({PAGE_OF[name]}.md)"
    if not default and _model(field) is None:
        default = code(as_yaml(field.get_default(call_default_factory=True)))
    return f"`{name}`", allowed, default, field.description or ""


def _model(field: FieldInfo) -> type[Block] | None:
    return field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Block) else None


# -- metrics ---------------------------------------------------------------------------------------------------------------
def _metrics() -> str:
    rows = [(f"`{metric.name}`", metric.title, "yes" if metric.ranked else "", metric.meaning) for metric in METRICS]
    metrics = table(("name", "title in tables", "ranked", "what it is"), rows)
    return f"{metrics}\n\nEvery column of a record:\n\n{_record_columns()}"


def _record_columns() -> str:
    """The columns of a record, as `fedbench.base.record_schema` declares them."""
    rows = [
        (f"`{column.name}`", column.type_name, "" if column.execution else "yes", column.meaning)
        for column in columns().values()
    ]
    return table(("column", "type", "same in every execution", "meaning"), rows)


# -- pages ----------------------------------------------------------------------------------------------------------------
def with_part(page: str, part: str) -> str:
    """`page` with `part` between its markers. Raises ValueError if it has no markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


# -- the command line ------------------------------------------------------------------------------------------------------
def stale(home: Path = ROOT) -> dict[Path, str]:
    """{page: new text} of the pages that differ from the code. Raises ValueError and OSError."""
    available, changed = plugins(), {}
    for name, part in pages().items():
        page = home / name
        text = page.read_text()
        if (new := with_part(text, part(available))) != text:
            changed[page] = new
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """List stale pages or write them. Returns the exit code: 0, or 1 if some are stale."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.cli.docs_generator", description=(__doc__ or "").strip())
    parser.add_argument("--write", action="store_true", help="write the pages; without it, only list the stale ones")
    options = parser.parse_args(arguments)
    changed = stale()
    for page, text in changed.items():
        sys.stdout.write(f"{page.relative_to(ROOT)}: {'written' if options.write else 'stale'}\n")
        if options.write:
            page.write_text(text)
    return STALE if changed and not options.write else SAME


if __name__ == "__main__":
    sys.exit(main())
