"""The README's commands work as written. Commands that take minutes are run elsewhere; here their targets must exist."""

from __future__ import annotations

import re

import pytest
import yaml
from followed import Page

from fedbench.cli import check
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import HOME, plugins

README = Page("README.md")


def test_there_are_commands():
    assert README.commands[0] == "make demo"
    assert len(README.commands) >= 8
    assert len(README.on_slurm) == 3  # see tests/slurm/test_pages.py


def test_it_is_short():
    assert len(README.text.split()) <= 1000
    (code,) = README.blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) == 13  # as its heading says


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in README.commands if command not in README.on_slurm])
def test_command(command, tmp_path):
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (HOME / "Makefile").read_text(), re.MULTILINE)
        assert command in (HOME / ".ci" / "run").read_text()  # the gate runs it in a clean clone
        return
    README.lay_out(tmp_path)
    README.run(command, tmp_path)


def test_the_sweep_file_in_the_page_is_legal():
    (text,) = README.blocks("yaml")
    sweep = check_sweep(yaml.safe_load(text), plugins())
    assert len(sweep.runs) == 2 * 3 * 3


@pytest.mark.slow
def test_the_method_in_the_page_keeps_the_contract(tmp_path):
    (code,) = README.blocks("python")
    path = tmp_path / "in_the_page.py"
    path.write_text(code)
    assert check.main([str(path), "--data", str(tmp_path)]) == 0


def test_the_files_that_it_names_exist():
    names = [*re.findall(r"\]\(([\w./]+)(?:#[\w-]+)?\)", README.text), *re.findall(r"`(sweeps/[\w/.]+)`", README.text)]
    assert len(names) > 15
    for name in names:
        assert (HOME / name).exists(), name


def test_every_sweep_file_is_legal():
    from fedbench.plan.planning import read_sweep

    files = sorted((HOME / "sweeps").glob("*.yaml"))
    assert files
    for path in files:
        assert read_sweep(path).runs


def test_its_table_is_that_of_the_demos_report(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(HOME / "reports"))
    import make_readme

    first = "| a | b | Average rank |\n| - | - | -: |\n| x | 1 | 2.0 |\n\n- Note.\n- Runs: 2\n- Code: c\n"
    report = f"# demo\n\nThe answer.\n\n{first}\n## More\n\n| c |\n\n- other\n"
    table = make_readme.demo_table(report)
    assert table == "| a | b |\n| - | - |\n| x | 1 |\n\n- Note.\n- Code: c"
    page = make_readme.with_table(README.text, table)
    assert make_readme.with_table(page, make_readme.demo_table(README.text)) == README.text  # nothing else changes
    with pytest.raises(ValueError, match="lacks"):
        make_readme.with_table("no marks", table)
    with pytest.raises(ValueError, match="no table"):
        make_readme.demo_table("# demo\n")
