"""Which tests run which function, and how long each test takes: measured once per test file with coverage."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coverage

from .planting import Mutant

FAST = "not slow and not slurm"
KILLS_COUNT = 20  # a test file that killed a mutant in a folder is tried there as if it took a 20th of its time
QUICK = 3.0  # seconds of a test file that is tried although it runs nothing of the changed file
QUICK_TEST = 0.1  # seconds of a test that is run before all slower ones


def functions(source: bytes) -> dict[str, range]:
    """The lines of every function that lies in no other function, by qualified name."""
    spans: dict[str, range] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                spans[prefix + child.name] = range(child.lineno, (child.end_lineno or child.lineno) + 1)
            else:
                visit(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    visit(ast.parse(source), "")
    return spans


@dataclass
class TestMap:
    """What was measured: by test file, the seconds of its tests, and the tests that run each function."""

    __test__ = False
    measured: Mapping[str, Mapping[str, Any]]  # {test file: {"seconds": {test: s}, "ran": {"file::function": [test]}}}
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # by test file and folder of the mutant

    def order(self, mutant: Mutant, source: bytes) -> list[str]:
        """The tests to run: first those that run the mutant's function, the quick ones first, then the others of their files.

        A mutant outside functions, or in a function that no test runs, has the tests of its whole file, and those of quick
        test files, which may read its constants.
        """
        names = [name for name, lines in functions(source).items() if mutant.line in lines]
        direct = self._tests(lambda key: key in {f"{mutant.file}::{name}" for name in names})
        readers: dict[str, set[str]] = {}
        if not direct:
            direct = self._tests(lambda key: key.startswith(mutant.file + "::"))
            for name, known in self.measured.items():
                if name not in direct and sum(known["seconds"].values()) < QUICK:
                    readers[name] = set(known["seconds"])
        chosen, folder = direct | readers, str(Path(mutant.file).parent)

        def sorted_by_file(tests: Mapping[str, set[str]]) -> list[str]:
            """The tests of one file together, as they share fixtures; first the quickest file, or one with many kills."""

            def cost(test_file: str) -> tuple[float, str]:
                kills = self.kills[test_file, folder]
                kills += Path(mutant.file).stem in test_file  # named alike: made for it
                kills += "/oracle/" in test_file  # which recompute whole runs
                return (0.5 + sum(map(self.seconds, tests[test_file]))) / (1 + KILLS_COUNT * kills), test_file

            return [test for name in sorted(tests, key=cost) for test in sorted(tests[name])]

        quick = {name: {test for test in tests if self.seconds(test) < QUICK_TEST} for name, tests in chosen.items()}
        slower = {name: tests - quick[name] for name, tests in chosen.items()}
        others = {name: set(self.measured[name]["seconds"]) - tests for name, tests in chosen.items()}
        return [test for tests in (quick, slower, others) for test in sorted_by_file(tests)]

    def _tests(self, wanted: Any) -> dict[str, set[str]]:
        chosen: defaultdict[str, set[str]] = defaultdict(set)
        for name, known in self.measured.items():
            for key, tests in known["ran"].items():
                if wanted(key):
                    chosen[name].update(tests)
        return chosen

    def note_kill(self, test: str, mutant: Mutant) -> None:
        """Let the file of a test that killed a mutant come early for the next mutant of the same folder."""
        self.kills[test.partition("::")[0], str(Path(mutant.file).parent)] += 1

    def seconds(self, test: str) -> float:
        """The time that a test took when it was measured."""
        return float(self.measured.get(test.partition("::")[0], {}).get("seconds", {}).get(test, 0.0))


def test_map(tree: Path, kept: Path, tests: Sequence[str]) -> TestMap:
    """The map of the test files among `tests` (all without any); files that changed since are measured again.

    Raises SystemExit if a test fails.
    """
    paths = [path for name in tests or ["tests"] for path in files_of(tree / name.partition("::")[0])]
    wanted = {path.relative_to(tree).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    places = {name: kept / (name.replace("/", "+") + ".json") for name in wanted}
    known = {name: json.loads(place.read_text()) for name, place in places.items() if place.exists()}
    stale = [name for name in wanted if known.get(name, {}).get("digest") != wanted[name]]
    if stale:
        kept.mkdir(exist_ok=True)
        print(f"measuring which function is run by which test of {len(stale)} files ...", flush=True)
        for name, measured in measure(tree, kept, stale).items():
            known[name] = {"digest": wanted[name], **measured}
            places[name].write_text(json.dumps(known[name]))
    return TestMap({name: known[name] for name in wanted})


def files_of(path: Path) -> Iterator[Path]:
    """The test files that a file or folder stands for."""
    yield from sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def measure(tree: Path, kept: Path, tests: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run test files with coverage, two processes at a time."""
    data, times = kept / "coverage", kept / "times.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "worksteal",
        "-p",
        "no:cacheprovider",
        "-m",
        FAST,
    ]
    command += ["--cov", "--cov-context=test", "--cov-report=", f"--junit-xml={times}", "-o", "junit_family=xunit1"]
    env = {**os.environ, "COVERAGE_FILE": str(data)}
    done = subprocess.run([*command, *tests], cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 5):  # 5: all tests of these files are slow
        raise SystemExit(f"the tests must pass before anything is changed:\n{(done.stdout + done.stderr)[-3000:]}")
    return read_measurement(tree, data, times, tests)


def read_measurement(tree: Path, data: Path, times: Path, tests: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{test file: {"seconds", "ran"}} from coverage's data and the times of tests."""
    measured: dict[str, dict[str, Any]] = {name: {"seconds": {}, "ran": defaultdict(list)} for name in tests}
    for case in ElementTree.parse(times).iter("testcase"):
        name = case.get("file") or ""
        if name in measured:
            measured[name]["seconds"][f"{name}::{case.get('name')}"] = float(case.get("time") or 0)
    stored = coverage.CoverageData(str(data))
    stored.read()
    for path in map(Path, stored.measured_files()):
        source = path.relative_to(tree).as_posix()
        contexts = stored.contexts_by_lineno(str(path))
        for function, lines in functions(path.read_bytes()).items():
            # Not the line of `def`, which runs at import.
            ran = {context.partition("|")[0] for line in lines[1:] for context in contexts.get(line, ())} - {""}
            for test in sorted(ran):
                if test.partition("::")[0] in measured:
                    measured[test.partition("::")[0]]["ran"][f"{source}::{function}"].append(test)
    return measured
