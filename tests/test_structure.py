"""The house rules that a machine can check: imports go down only, plug-ins see their contract alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fedbench.run import meter
from fedbench.plan.plugins import HOME

# A module may import from floors below its own; modules of one floor do not know each other, but for the pairs named.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("home", "storage", "pipe"),
    (
        "rng",
        "stacked",
        "spread",
        "heap",
        "frozen",
        "records",
        "measure",
        "nano",
        "glyph_renderer",
        "checkpoint",
        "claim",
        "shared",
        "lock",
        "progress",
    ),
    ("failures", "track", "environment"),
    ("method",),
    ("data", "fedopt"),
    ("plugins", "images", "backbone", "cache", "safe_pickle", "memory", "archive", "decode", "download"),
    ("compiled", "entering"),
    ("pixels",),
    ("prepared",),
    ("cifar", "domains"),
    ("config", "features", "cohort", "server"),
    ("local", "cost", "planning"),
    ("setting", "tuning"),
    ("evaluation",),
    ("simulation", "contract"),
    ("pack",),
    ("job",),
    ("keeper",),
    ("launch", "split_view"),
    ("slurm",),
    ("watch",),
    ("sweep", "data_cli", "pretrain", "check", "methods", "reference_pages", "bench"),
    ("status", "completion"),
)
TORCH_FREE = (*meter.WING, "split_figure", "records", "storage", "home", "pipe")
ALLOWED_ACROSS = {
    ("lock", "claim"),
    ("track", "records"),
    ("nano", "glyph_renderer"),
    ("local", "config"),
    ("cost", "server"),
    ("reference_pages", "methods"),
}
PLUGIN_SEES = (
    "fedbench.method",
    "fedbench.method.server_optimizers",
    "fedbench.data",
    "fedbench.sources.archive",
    "fedbench.sources.cache",
    "fedbench.sources.cifar",
    "fedbench.sources.decode",
    "fedbench.sources.domains",
    "fedbench.sources.pixels",
    "fedbench.sources.prepared",
    "fedbench.sources.safe_pickle",
    "fedbench.sources.glyph_renderer",
    "fedbench.base.rng",
)


def imports(path: Path) -> set[str]:
    """The modules of fedbench that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fedbench":
            found |= {f"fedbench.{a.name}" for a in node.names} if node.module == "fedbench" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "fedbench"}
    return found


def upward(name: str, imported: set[str]) -> list[str]:
    """The imports of module `name` that do not go down."""
    floor = {module: number for number, floor in enumerate(FLOORS) for module in floor}
    wrong = []
    for other in sorted(module.split(".")[1] for module in imported):
        if other != name and other in floor and (name, other) not in ALLOWED_ACROSS and floor[other] >= floor[name]:
            wrong.append(other)
    return wrong


def modules() -> list[Path]:
    return sorted((HOME / "fedbench").rglob("*.py"))


def module_name(path: Path) -> str:
    relative = path.relative_to(HOME / "fedbench")
    if relative.stem == "__main__":  # starts the program that its package is the name of
        return "__main__"
    program = relative.stem == "pretrain"  # it makes what the package `nano` ships, from the top of the house
    return relative.parts[0] if len(relative.parts) > 1 and not program else relative.stem


def test_imports_go_down_only():
    known = {name for floor in FLOORS for name in floor} | set(TORCH_FREE) | {"__init__", "__main__"}
    for path in modules():
        name = module_name(path)
        assert name in known, f"{path.name} stands on no floor: say in test_structure.py where it belongs"
        if name not in TORCH_FREE and name not in ("__init__", "__main__"):
            assert not upward(name, imports(path)), f"{path.name} imports upwards"


@pytest.mark.parametrize(
    "line",
    [
        "from fedbench.run.simulation import run",
        "from fedbench import simulation",
        "import fedbench.run.simulation",
        "def later():\n    import fedbench.run.simulation as up",
    ],
)
def test_a_planted_upward_import_is_seen(tmp_path, line):
    planted = tmp_path / "local.py"
    planted.write_text((HOME / "fedbench" / "local.py").read_text() + f"\n{line}\n")
    assert upward("local", imports(planted)) == ["simulation"]
    planted.write_text((HOME / "fedbench" / "local.py").read_text())
    assert upward("local", imports(planted)) == []


def test_reports_know_records_and_configs_only():
    seen = set()
    for path in modules():
        name = module_name(path)
        if name in TORCH_FREE:
            seen.add(name)
            known = (*TORCH_FREE, "config", "planning", "plugins", "tuning")
            wrong = {i for i in imports(path) if i.split(".")[1] not in known}
            assert not wrong, f"{path.name} imports {wrong}"
    assert seen == set(TORCH_FREE)


@pytest.mark.parametrize("folder", ["methods", "datasets"])
def test_plug_ins_see_their_contract_alone(folder):
    files = sorted((HOME / folder).rglob("*.py"))
    assert len(files) > 4
    for path in files:
        assert path.name != "__init__.py"
        wrong = {module for module in imports(path) if not module.startswith(PLUGIN_SEES)}
        assert not wrong, f"{path.name} imports {wrong}"


LONGEST = 400  # lines


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
