"""The README's commands work as they stand; what takes minutes is made by the gate, and here it must at least exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from fedbench.config import check_sweep
from fedbench.plugins import HOME, plugins

README = (HOME / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_there_are_commands():
    assert COMMANDS[0] == "make demo"
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (HOME / "Makefile").read_text(), re.MULTILINE)
        assert f"make {words[1]}" in (HOME / ".ci" / "run").read_text()  # the gate runs it in a clean clone
        return
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=HOME, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_the_sweep_file_in_the_page_is_legal():
    (text,) = blocks("yaml")
    sweep = check_sweep(yaml.safe_load(text), plugins())
    assert len(sweep.runs) == 2 * 3 * 3


def test_the_files_that_it_names_exist():
    for name in re.findall(r"\]\(([\w./]+)\)", README) + re.findall(
        r"`((?:sweeps|methods|fedbench|benchmarks)/[\w/.]+)`", README
    ):
        assert (HOME / name).exists(), name


def test_every_sweep_file_is_legal():
    from fedbench.config import read_sweep

    files = sorted((HOME / "sweeps").glob("*.yaml"))
    assert files
    for path in files:
        assert read_sweep(path).runs
