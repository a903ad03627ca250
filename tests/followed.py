"""Follows a page literally: writes its files and runs its commands, in order, in a separate folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fedbench.plan.plugins import HOME


@dataclass(frozen=True)
class Page:
    """A page of the repository, by its path there."""

    name: str

    @property
    def text(self) -> str:
        return (HOME / self.name).read_text()

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    @property
    def files(self) -> dict[str, str]:
        """{path: content} of the code blocks that follow a line with only a path."""
        return dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE))

    @property
    def commands(self) -> list[str]:
        lines = [line.split("  #")[0].strip() for block in self.blocks("bash") for line in block.splitlines()]
        return [line for line in lines if line]

    @property
    def on_slurm(self) -> list[str]:
        return [command for command in self.commands if "--cluster slurm" in command]

    def lay_out(self, folder: Path) -> None:
        """Make `folder` look like a clone to the page's commands, which cannot write to the real clone."""
        (folder / "sweeps").symlink_to(HOME / "sweeps")
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "reports").mkdir()
        (folder / "reports" / "make_figures.py").symlink_to(HOME / "reports" / "make_figures.py")
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def run(self, command: str, folder: Path) -> str:
        """The output of a command in a shell like the reader's, with `folder` as the home folder."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PYTHONPATH": str(HOME), "COLUMNS": "200", "HOME": str(folder), "PATH": path}
        env["XDG_CACHE_HOME"] = str(Path.home() / ".cache")  # Matplotlib's list of fonts takes its time
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout
