"""The default of every option is the one on its page. Pages are made from the code, so a changed default shows there, too."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_core import PydanticUndefined

from fedbench.plan.config import Block, RunConfig
from fedbench.plan.identity import LATER_KEYS
from fedbench.plan.plugins import HOME, plugins

PAGES = {"method": "methods", "aggregation": "aggregations", "partition": "partitioners", "dataset": "datasets"}
ROW = re.compile(r"^\| `(\w+)` \| .* \| `([^`]*)` \| [^|]+ \|$")


def stated(page: str) -> dict[tuple[str, str], Any]:
    """{(heading, option): default} of the tables of a page. An option that must be set has none."""
    defaults, heading = {}, ""
    for line in (HOME / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.strip("#` ")
        elif row := ROW.match(line):
            defaults[heading, row[1]] = yaml.safe_load(row[2])
    return defaults


def plain(value: Any) -> Any:
    """The value as YAML has it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("kind", PAGES)
def test_a_plug_ins_defaults_are_those_of_its_page(kind: str) -> None:
    classes, on_page = plugins().classes[kind], stated(PAGES[kind])
    shared = {
        name: default for (heading, name), default in on_page.items() if heading not in classes
    }  # of all plug-ins
    for plugin, cls in classes.items():
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                expected = on_page[plugin, field.name] if (plugin, field.name) in on_page else shared[field.name]
                assert plain(field.default) == expected, f"{plugin}: {field.name}"


def test_the_defaults_of_the_sweep_file_are_those_of_its_page() -> None:
    on_page = stated("sweep_file")
    for model in Block.__subclasses__():
        heading = "base and grid" if model is RunConfig else model.__name__.removesuffix("Config").lower()
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            if default is not PydanticUndefined and not isinstance(default, Block):
                assert plain(default) == on_page[heading, name], name


def test_the_defaults_of_later_keys_are_those_of_the_sweep_file() -> None:
    for block, defaults in LATER_KEYS.items():
        model: Any = RunConfig.model_fields[block].annotation
        assert defaults == {name: model.model_fields[name].default for name in defaults}
