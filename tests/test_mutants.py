"""The tool of `make mutants`: which faults it plants, and how it puts them into code that runs already."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from mutants.coverage_map import TestMap, functions
from mutants.planting import drawn, mutants
from mutants.swapping import swap

SOURCE = b'''
"""A file."""
LIMIT = 3
class Scale:
    unit = 2
    def times(self, x):
        def inner(y):
            return y * self.unit + 1
        return inner(x)
def clip(x):
    return min(x, LIMIT)
'''


@pytest.fixture
def module(tmp_path: Path):
    path = tmp_path / "scale.py"
    path.write_bytes(SOURCE)
    spec = importlib.util.spec_from_file_location("scale", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_planted_faults_of_a_file_are_these():
    changes = {(x.line, " ".join(x.old.split()), x.new.strip("()")) for x in mutants("scale.py", SOURCE)}
    assert changes == {
        (3, "3", "4"),
        (5, "2", "3"),
        (8, "y * self.unit + 1", "y * self.unit - 1"),
        (8, "y * self.unit + 1", "y * self.unit"),
        (8, "y * self.unit + 1", "1"),
        (8, "y * self.unit", "y / self.unit"),
        (8, "y * self.unit", "y"),
        (8, "y * self.unit", "self.unit"),
        (8, "1", "2"),
        (11, "min(x, LIMIT)", "max(x, LIMIT"),
    }


def test_a_draw_depends_on_its_seed_alone(tmp_path):
    (tmp_path / "scale.py").write_bytes(SOURCE)
    assert (
        drawn(tmp_path, ["scale.py"], 4, 1)
        == drawn(tmp_path, ["scale.py"], 4, 1)
        != drawn(tmp_path, ["scale.py"], 4, 2)
    )
    assert drawn(tmp_path, ["scale.py"], 0, 1) == list(mutants("scale.py", SOURCE))
    assert [x.line for x in drawn(tmp_path, ["scale.py:5", "scale.py:11"], 0, 1)] == [5, 11]


@pytest.mark.parametrize(
    ("old", "new", "answers"),
    [(b"+ 1", b"- 1", (9, 3)), (b"min", b"max", (11, 7)), (b"y * self.unit", b"y", (6, 3)), (b"", b"", (11, 3))],
)
def test_objects_made_before_a_swap_run_the_changed_code(module, old, new, answers):
    times, clip = module.Scale().times, module.clip
    swap(Path(module.__file__), SOURCE, SOURCE.replace(old, new))
    assert (times(5), clip(7)) == answers


@pytest.mark.parametrize("old", [b"LIMIT = 3", b"unit = 2"])
def test_a_change_outside_functions_cannot_be_swapped(module, old):
    with pytest.raises(ValueError, match="not within a function"):
        swap(Path(module.__file__), SOURCE, SOURCE.replace(old, old + b"0"))
    assert module.clip(7) == 3


def test_a_mutant_meets_the_quick_tests_of_its_function_first_and_those_of_killers_before_others():
    assert functions(SOURCE) == {"Scale.times": range(6, 10), "clip": range(10, 12)}
    ran = {"f/scale.py::clip": ["tests/a.py::q", "tests/a.py::x"], "f/scale.py::Scale.times": ["tests/a.py::y"]}
    known = TestMap(
        {
            "tests/a.py": {"seconds": {"tests/a.py::q": 0.01, "tests/a.py::x": 2.0, "tests/a.py::y": 3.0}, "ran": ran},
            "tests/b.py": {"seconds": {"tests/b.py::z": 1.0}, "ran": {"f/scale.py::clip": ["tests/b.py::z"]}},
            "tests/c.py": {"seconds": {"tests/c.py::w": 0.1}, "ran": {}},
        }
    )
    by_line = {x.line: x for x in mutants("f/scale.py", SOURCE)}
    assert known.order(by_line[11], SOURCE) == ["tests/a.py::q", "tests/b.py::z", "tests/a.py::x", "tests/a.py::y"]
    assert known.order(by_line[8], SOURCE) == ["tests/a.py::y", "tests/a.py::q", "tests/a.py::x"]
    every = [
        "tests/a.py::q",
        "tests/c.py::w",
        "tests/b.py::z",
        "tests/a.py::x",
        "tests/a.py::y",
    ]  # c.py may read the constant
    assert known.order(by_line[3], SOURCE) == every
    known.note_kill("tests/a.py::x", by_line[11])
    assert known.order(by_line[11], SOURCE)[:2] == ["tests/a.py::q", "tests/a.py::x"]
