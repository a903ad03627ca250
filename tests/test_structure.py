"""Rules about the source itself: which imports are allowed, what plug-ins may import, file headers, lengths and names."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from fedbench.base.home import HOME

PACKAGE = HOME / "fedbench"
# A file may import from its own folder and from the folders before it in this list.
FOLDERS = (
    *("base", "method", "data", "sources", "vit", "text", "plan", "run", "jobs", "report"),
    *("contract", "bench", "pretraining", "cli"),
)
PLUGIN_TOOLKITS = {"methods": {"fedbench.method"}, "datasets": {"fedbench.data", "fedbench.sources"}}
TORCH_FREE = ("base", "report")


def imports(path: Path) -> set[str]:
    """The modules of fedbench that a file imports, anywhere in it, such as ``fedbench.run.local``."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fedbench":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if is_module(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fedbench"}
    return modules


def is_module(name: str) -> bool:
    path = HOME.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward(folder: str, imported: set[str]) -> set[str]:
    """The modules among `imported` that a file in `folder` may not import."""
    allowed = FOLDERS[: FOLDERS.index(folder) + 1]
    return {module for module in imported if folder_of(module) not in (*allowed, "")}


def files(folder: str) -> list[Path]:
    """The files of a folder, without those that only start a program."""
    return [path for path in sorted((PACKAGE / folder).rglob("*.py")) if path.name != "__main__.py"]


def test_every_folder_has_its_place_in_the_order():
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert there == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_down_by_folder(folder):
    for path in files(folder):
        assert not upward(folder, imports(path)), f"{path} imports upwards"


def test_the_root_holds_nothing_but_entry_points():
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text().splitlines()) < 10 or path.name == "__main__.py", path.name


def test_no_files_import_each_other_in_a_circle():
    graph = {}
    for folder in FOLDERS:
        for path in files(folder):
            name = ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__")
            # A package's own __init__ gathers what its files define; the files do not import it.
            graph[name] = {module for module in imports(path) if is_module(module)} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "line",
    [
        "from fedbench.run.simulation import run_rounds",
        "from fedbench.run import simulation",
        "import fedbench.run.simulation",
        "def later():\n    import fedbench.run.simulation as up",
    ],
)
def test_a_planted_upward_import_is_seen(tmp_path, line):
    planted, source = tmp_path / "backbone.py", (PACKAGE / "vit" / "backbone.py").read_text()
    planted.write_text(f"{source}\n{line}\n")
    assert upward("vit", imports(planted)) == {"fedbench.run.simulation"}
    planted.write_text(source)
    assert not upward("vit", imports(planted))


@pytest.mark.parametrize("folder", TORCH_FREE)
def test_reports_start_without_torch(folder):
    modules = [".".join(path.relative_to(HOME).with_suffix("").parts) for path in files(folder)]
    lines = [f"import {module.removesuffix('.__init__')}" for module in modules]
    code = "\n".join([*lines, "import sys", "sys.exit('torch' in sys.modules)"])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HOME)


def test_reports_read_files_and_plans_only():
    for path in files("report"):
        used = {folder_of(module) for module in imports(path)}
        assert used <= {"base", "plan", "report", ""}, f"{path} imports {used}"


def offered(toolkits: set[str]) -> set[str]:
    """``module.name`` of all that a plug-in may import from its toolkits, and the toolkits themselves."""
    names = {f"{toolkit}.{name}" for toolkit in toolkits for name in import_module(toolkit).__all__}
    return names | toolkits


def imported_names(path: Path) -> set[str]:
    """``module.name`` of all that a file imports from fedbench."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedbench":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fedbench"}
    return names


@pytest.mark.parametrize("folder", PLUGIN_TOOLKITS)
def test_plug_ins_import_their_toolkit_alone(folder):
    paths = sorted((HOME / folder).rglob("*.py"))
    assert len(paths) > 4
    for path in paths:
        assert path.name != "__init__.py"
        assert imported_names(path) <= offered(PLUGIN_TOOLKITS[folder]), path.name


@pytest.mark.parametrize(
    "line",
    [
        "from fedbench.sources.cache import cached_arrays",
        "from fedbench.sources import cache",
        "import fedbench.base.rng",
        "from fedbench import base",
    ],
)
def test_a_planted_import_beside_the_toolkit_is_seen(tmp_path, line):
    planted, source = tmp_path / "glyphs.py", (HOME / "datasets" / "glyphs.py").read_text()
    planted.write_text(f"{source}\n{line}\n")
    assert len(imported_names(planted) - offered(PLUGIN_TOOLKITS["datasets"])) == 1


@pytest.mark.parametrize("package", ["method", "data", "sources"])
def test_toolkits_say_what_they_offer(package):
    module = import_module(f"fedbench.{package}")
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


LONGEST = 400  # lines
STAND_INS = {"one", "found", "own", "given", "told", "mine", "got", "kin", "seen", "asked"}


def identifiers(source: str) -> set[str]:
    """All names in a file: of variables, parameters, attributes, functions and classes."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        for attribute in ("id", "arg", "attr", "name"):
            names.add(getattr(node, attribute, None))
    return {name for name in names if isinstance(name, str)}


@pytest.mark.parametrize("folder", ["fedbench", "methods", "datasets", "reports", "benchmarks"])
def test_names_are_nouns_and_no_stand_ins(folder):
    for path in (HOME / folder).rglob("*.py"):
        assert not STAND_INS & identifiers(path.read_text()), f"{path}: name the thing"


@pytest.mark.parametrize("line", ["found = 1", "def f(one): ...", "x.told", "def mine(): ...", "f(given=1)"])
def test_a_planted_stand_in_is_reported(line):
    assert STAND_INS & identifiers(line)


def test_every_file_says_why_it_exists():
    for folder in ("fedbench", "methods", "datasets", "reports", "benchmarks", "tests"):
        for path in (HOME / folder).rglob("*.py"):
            says = ast.get_docstring(ast.parse(path.read_text()))
            assert says, f"{path} has no header"
            if folder != "tests":
                assert path.read_text().startswith('"""' + says.splitlines()[0]), f"{path}: the first line says why"


def test_no_file_is_long_without_a_reason():
    long = {
        path.relative_to(HOME).as_posix()
        for folder in ("fedbench", "methods", "datasets", "reports", "benchmarks")
        for path in (HOME / folder).rglob("*.py")
        if len(path.read_text().splitlines()) > LONGEST
    }
    assert not long
