"""Every command in the docs is legal for its program, and commands have one spelling."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec

import pytest
from followed import Page

from fedbench.cli.main import VERBS
from fedbench.plan.plugins import HOME

PAGES = [Page(path.relative_to(HOME).as_posix()) for path in (*HOME.glob("*.md"), *HOME.glob("docs/*.md"))]
PAGES.append(Page("benchmarks/README.md"))


def quoted_commands(page: Page) -> list[str]:
    """Every command of a page: lines of its bash blocks and of blocks of plain text, and code in its text."""
    prose = re.sub(r"^```.*?^```", "", page.text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose)]
    plain = [line.split(" #")[0] for block in page.blocks("text") for line in block.splitlines()]
    return [*page.commands, *(text for text in plain + inline if re.match(r"(fedbench|python|make) [\w-]", text))]


def mistake(command: str) -> str | None:
    """Why a command cannot run as it is written: an unknown target, file, module or option. Nothing is run."""
    program, *words = shlex.split(command)
    if program == "make":
        known = re.findall(r"^([\w-]+):", (HOME / "Makefile").read_text(), re.MULTILINE)
        return None if words[0] in known else f"no target {words[0]}"
    if program == "python" and words[0] == "-m":
        return None if find_spec(words[1]) else f"no module {words[1]}"
    if program == "python":
        return None if (HOME / words[0]).is_file() else f"no file {words[0]}"
    if program != "fedbench":
        return None
    if words[0] not in VERBS:
        return f"no verb {words[0]}"
    parser = import_module(VERBS[words[0]][0]).parser(f"fedbench {words[0]}")
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            parser.parse_args(
                [word.strip("[]") for word in words[1:] if word != "..."]
            )  # [--option]: it may be left out
        except SystemExit as end:
            # A page may name a command or an option without its arguments.
            short = re.search("arguments are required|expected (at least )?one argument", said.getvalue())
            return None if end.code == 0 or short else said.getvalue()
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_quoted_command_has_legal_options(page):
    assert {command: why for command in quoted_commands(page) if (why := mistake(command))} == {}


def test_a_wrong_command_is_seen():
    wrong = ["make nothing", "python -m fedbench.nowhere", "python reports/nothing.py", "fedbench sweeep x.yaml"]
    for command in (*wrong, "fedbench sweep x.yaml --dryrun", "fedbench data unpack cifar10"):
        assert mistake(command), command
    assert mistake("fedbench sweep sweeps/quickstart.yaml --dry-run") is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_one_spelling(page):
    verbs = "|".join(VERBS)
    modules = re.findall(rf"python -m fedbench[. ](?:{verbs})\b.*|python reports/make_figures.*", page.text)
    if page.name == "README.md":
        assert len(modules) == 1  # says that they are the same
    elif page.name == "ARCHITECTURE.md":
        assert all("same as `fedbench" in line for line in modules)
    elif page.name != "docs/architecture.md":  # the same file
        assert modules == []


VERBS_WITH_PLUGINS = {
    "sweep": "x.yaml",
    "figures": "x.yaml",
    "publish": "x.yaml --out x.parquet",
    "verify": "x.parquet",
    "fetch-weights": "x.yaml",
    "methods": "",
    "data": "list",
}


@pytest.mark.parametrize("verb", VERBS_WITH_PLUGINS)
def test_repeated_plugins_are_all_used(verb):
    parser = import_module(VERBS[verb][0]).parser(f"fedbench {verb}")
    words = [*VERBS_WITH_PLUGINS[verb].split(), "--plugins", "a", "--plugins", "b", "c"]
    assert [str(folder) for folder in parser.parse_args(words).plugins] == ["a", "b", "c"]
