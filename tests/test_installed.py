"""The wheel, installed in a separate environment: the verbs outside the checkout, with a user's plug-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from fedbench.plan.plugins import HOME, plugins

pytestmark = pytest.mark.slow

OWN_METHOD = '''"""A method of a user's own: two prompt tokens that all clients share."""

from dataclasses import dataclass

from fedbench import method
from fedbench.method import Param, linear_head, tokens


@dataclass(frozen=True)
class Method(method.Method):
    family = "global"

    def layers(self, depth):
        return (0,)

    def params(self, task):
        return {"prompt": Param(task.prompt_init("prompt", 2, task.width))} | linear_head(task)

    def prompts(self, layer, p, cls, query):
        return {"prompt": tokens(p["prompt"], cls)}
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, for a build leaves a folder in the tree."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("fedbench", "methods", "datasets", "sweeps", "reports"):
        shutil.copytree(HOME / name, place / "src" / name, ignore=shutil.ignore_patterns("__pycache__", "out"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOME / name, place / "src")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*build, "-w", str(place), str(place / "src")], check=True)
    (made,) = place.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def fedbench(wheel):
    """Runs `fedbench WORDS ...` in a folder outside the checkout and returns what it prints.

    What fedbench needs is lent by this environment; fedbench itself is the wheel's.
    """
    place = wheel.parent
    venv.create(place / "venv", with_pip=False)
    python = place / "venv" / "bin" / "python"
    (lent,) = (place / "venv" / "lib").glob("python*/site-packages")
    (lent / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    (place / "away").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}

    def run(*words: str, code: int = 0) -> str:
        command = [str(place / "venv" / "bin" / "fedbench"), *words]
        done = subprocess.run(command, cwd=place / "away", env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_wheel_holds_all_of_the_package_and_no_other_top_folder(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"fedbench"}
    package = {path.relative_to(HOME).as_posix() for path in (HOME / "fedbench").rglob("*.*")}
    home = {path for folder in ("methods", "datasets") for path in (HOME / folder).rglob("*.py")}
    home |= {
        *(HOME / "datasets").glob("*.npz"),
        *(HOME / "sweeps").rglob("*.yaml"),
        *(HOME / "reports" / "reference").glob("*.csv"),
    }
    expected = {name for name in package if not name.endswith(".pyc")}
    expected |= {f"fedbench/_home/{path.relative_to(HOME).as_posix()}" for path in home}
    assert names == expected


def test_plug_ins_are_found(fedbench):
    listed = {entry["name"] for entry in json.loads(fedbench("methods", "--json"))}
    classes = plugins().classes
    assert listed == set(classes["method"]) | set(classes["aggregation"])
    assert {line.split()[0] for line in fedbench("data", "list").splitlines()} == set(classes["dataset"])


def test_the_embedded_default_runs_with_a_method_of_ones_own(fedbench, wheel):
    method = wheel.parent / "away" / "mine" / "methods" / "own.py"
    method.parent.mkdir(parents=True)
    method.write_text(OWN_METHOD)
    assert "FAIL" not in fedbench("check", "mine/methods/own.py")
    which = ["quickstart", "--plugins", "mine", "--set", "grid.method=[{name: own}, {name: fedncm}]"]
    which += ["--set", "seed=0", "--set", "rounds=1", "--set", "evaluate_every=1"]
    which += ["--set", "partition={name: dirichlet, alpha: 0.3}"]
    assert json.loads(fedbench("status", *which, "--json"))["counts"]["missing"] == 2
    fedbench("sweep", *which, "--cluster", "local")
    assert json.loads(fedbench("status", *which, "--json"))["counts"]["done"] == 2
    assert "own" in fedbench("figures", *which)
    assert (wheel.parent / "away" / "reports" / "out" / "index.html").is_file()
