"""Mutation testing: change one expression of a file at a time, run the tests that cover its line, and print what survives.

    make mutants                                             # files that differ from main
    make mutants FILES="fedbench/run/server.py" COUNT=40 SEED=7 TESTS="tests/oracle tests/test_simulation.py"

The tree is copied, so nothing here changes. TESTS (by default the fast tests) run once with coverage, which says how long each
test takes and which lines it covers. This is kept in .mutants/ until a file changes. COUNT mutants are drawn with SEED; 0 takes
all. A mutant is killed if a test fails or takes far longer than usual. Otherwise it survives, or no test covers it, which is as
bad. The list of survivors at the end gives the place, the change and the tests that ran. A survivor calls for a test, unless
its change has no effect that can be observed.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".mutants"
FOLDERS = ("fedbench", "methods", "datasets", "reports", "benchmarks", "tests", "sweeps", "docs")
CODE = ("fedbench/", "methods/", "datasets/", "reports/")
FAST = "not slow and not slurm"
BINARY = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Div(),
    ast.Div: ast.Mult(),
    ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.Mult(),
    ast.Pow: ast.Mult(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
    ast.MatMult: ast.Mult(),
}
COMPARE = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum", "ceil": "floor"}
CALLS |= {"argmax": "argmin", "argsort": "sort", "sqrt": "abs", "square": "abs", "cumsum": "sort"}
WRAPPERS = ("detach", "abs", "sqrt", "square", "clamp", "float", "double", "sort", "sorted", "rint", "exp", "log")


@dataclass(frozen=True)
class Mutant:
    """One changed expression or statement of a file; lines count from 1, columns are bytes from 0."""

    file: str
    line: int
    old: str
    new: str
    start: int  # place in the file's bytes
    stop: int

    def applied(self, source: bytes) -> bytes:
        """The whole file with the change."""
        return source[: self.start] + self.new.encode() + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.old.split())}  ->  {self.new}"


def mutants(file: str, source: bytes) -> Iterator[Mutant]:
    """Every mutant of a file, in order."""
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    for node in code_nodes(ast.parse(source)):
        for new in changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[node.end_lineno - 1] + node.end_col_offset
            old = source[start:stop].decode()
            text = new if isinstance(new, str) else f"({ast.unparse(new)})" if isinstance(new, ast.expr) else "pass"
            if text.strip("()") != old:
                yield Mutant(file, node.lineno, old, text, start, stop)


def code_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that do something: no annotations, docstrings, imports, messages of exceptions, or parts of f-strings."""
    for name, value in ast.iter_fields(tree):
        if isinstance(tree, ast.keyword) and tree.arg == "strict":
            continue
        if name in ("annotation", "returns", "ctx", "bases", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            skipped = ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Raise | ast.Assert
            if not isinstance(child, ast.AST) or isinstance(child, skipped):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            yield child
            yield from code_nodes(child)


def changes(node: ast.AST) -> Iterator[ast.AST | str]:
    """The replacements of a node."""
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        yield ast.BinOp(node.left, BINARY[type(node.op)], node.right)
        yield from (node.left, node.right)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [COMPARE[type(node.ops[0])]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield repr(not node.value) if isinstance(node.value, bool) else repr(node.value + 1)
    elif isinstance(node, ast.Call):
        yield from changed_calls(node)
    elif isinstance(node, ast.AugAssign | ast.Continue | ast.Break) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        yield node.value


def changed_calls(node: ast.Call) -> Iterator[ast.AST]:
    """A call of another function, without its keyword arguments one at a time, or what it is called on."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute):
        if name in CALLS:
            yield ast.Call(ast.Attribute(node.func.value, CALLS[name], ast.Load()), node.args, node.keywords)
        if name in WRAPPERS and not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "math")):
            yield node.func.value
    elif name in CALLS and CALLS[name] not in ("mean", "sort"):
        yield ast.Call(ast.Name(CALLS[name], ast.Load()), node.args, node.keywords)
    if name in WRAPPERS and len(node.args) == 1:
        yield node.args[0]
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "description", "dtype", "device", "strict"):
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


# -- running ---------------------------------------------------------------------------------------------------------------
class Watcher:
    """Remembers the first test that fails."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest."""
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (cannot be imported)"


def run_tests(tree: Path, arguments: Sequence[str], answer: multiprocessing.connection.Connection) -> None:
    """In a separate process: run pytest in the copied tree and report the test that failed first."""
    os.setsid()  # so that the processes which tests start end with this one
    os.chdir(tree)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    watcher = Watcher()
    # What was loaded before the fork cannot have its assertions rewritten, and need not.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *arguments], plugins=[watcher])
    answer.send(watcher.failed or ("" if code == 0 else f"pytest ended with {code!r}"))


def killer(tree: Path, arguments: Sequence[str], seconds: float) -> str:
    """The test that fails, "" if none does. The time is limited, since a mutant may never end."""
    parent_end, child_end = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(tree, arguments, child_end))
    process.start()
    child_end.close()
    try:
        # Not only the pipe: a process that the tests started may hold its other end.
        if not multiprocessing.connection.wait([parent_end, process.sentinel], seconds):
            return "the time limit"
        return parent_end.recv() if parent_end.poll() else "a process that died"
    except EOFError:
        return "a process that died"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def copied_tree(place: Path) -> Path:
    """The files that tests need, without what git does not know or ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if name.startswith("results/") or not (ROOT / name).is_file():
            continue
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    return place


@dataclass(frozen=True)
class TestMap:
    """Which tests cover which line, and how many seconds each test takes."""

    data: coverage.CoverageData
    seconds: Mapping[str, float]  # of the tests that pass, by node id

    def tests_of(self, mutant: Mutant) -> list[str] | None:
        """The tests that run a line of the mutant, those of quick files first; None if nothing runs it.

        A line that runs at import alone has the tests of its file.
        """
        name = next((name for name in self.data.measured_files() if name.endswith("/" + mutant.file)), "")
        by_line = self.data.contexts_by_lineno(name) if name else {}
        lines = range(mutant.line, mutant.line + mutant.old.count("\n") + 1)
        contexts = {context for line in lines for context in by_line.get(line, ())}
        if not contexts:
            return None
        if contexts == {""}:
            contexts = {context for line in by_line.values() for context in line}
        tests = {context.partition("|")[0] for context in contexts} - {""}
        by_file: defaultdict[str, float] = defaultdict(float)
        for test in tests:
            by_file[test.partition("::")[0]] += self.seconds.get(test, 0.0)
        return sorted(tests, key=lambda test: (by_file[test.partition("::")[0]], test))

    def limit(self, tests: Sequence[str]) -> float:
        """The seconds after which `tests` take far longer than usual."""
        return 30.0 + 5.0 * sum(self.seconds.get(test, 0.0) for test in tests or self.seconds)


def measured(tree: Path, tests: Sequence[str]) -> TestMap:
    """The tests and their lines, measured in `tree` or kept from the last time that these files were measured."""
    digest = hashlib.sha256(repr(sorted(tests)).encode())
    for path in sorted(path for folder in FOLDERS for path in (tree / folder).rglob("*.py")):
        digest.update(path.relative_to(tree).as_posix().encode() + path.read_bytes())
    kept = KEPT / f"coverage-{digest.hexdigest()[:12]}"
    times = kept.with_suffix(".xml")
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        print("measuring which test covers which line ...", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", FAST, *tests]
        command += ["--cov", "--cov-context=test", "--cov-report=", f"--junit-xml={times}", "-o", "junit_family=xunit1"]
        env = {**os.environ, "COVERAGE_FILE": str(kept.with_suffix(".new"))}
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the tests must pass before anything is changed:\n{(done.stdout + done.stderr)[-3000:]}")
        kept.with_suffix(".new").rename(kept)
    data = coverage.CoverageData(str(kept))
    data.read()
    cases = ElementTree.parse(times).iter("testcase")
    return TestMap(data, {f"{case.get('file')}::{case.get('name')}": float(case.get("time") or 0) for case in cases})


def changed_files() -> list[str]:
    """The files that differ from main."""
    diff = subprocess.run(["git", "diff", "--name-only", "main"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in diff.stdout.split() if name.endswith(".py") and name.startswith(CODE)]


def drawn(files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants of the files, or all."""
    every = [mutant for file in files for mutant in mutants(file, (ROOT / file).read_bytes())]
    if not count or count >= len(every):
        return every
    chosen = random.Random(seed).sample(range(len(every)), count)
    return [every[i] for i in sorted(chosen)]


def difference(mutant: Mutant) -> str:
    """The change as a patch."""
    source = (ROOT / mutant.file).read_bytes()
    old, new = (text.decode().splitlines(keepends=True) for text in (source, mutant.applied(source)))
    return "".join(difflib.unified_diff(old, new, f"a/{mutant.file}", f"b/{mutant.file}", n=1))


def main() -> int:
    """The command line; 1 if a mutant survives or is uncovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="*", default=[], help="files or folders to change; default: what differs from main"
    )
    parser.add_argument("--tests", nargs="*", default=[], help="test files or folders; default: all fast tests")
    parser.add_argument("--count", type=int, default=30, help="mutants to draw; 0: all (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    options = parser.parse_args()
    files = [
        path.relative_to(ROOT).as_posix()
        for name in options.files or changed_files()
        for path in (sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name])
    ]
    if not files:
        print("nothing differs from main; name files with --files")
        return 0
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # two mutants of one size within a second would share compiled code
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as place:
        tree = copied_tree(Path(place).resolve())
        os.environ["PYTHONPATH"] = str(tree)
        return examine(tree, measured(tree, options.tests), drawn(files, options.count, options.seed), options.tests)


def examine(tree: Path, known: TestMap, chosen: Sequence[Mutant], tests: Sequence[str]) -> int:
    """Try all chosen mutants and print the outcome of each."""
    import timm  # noqa: F401 - once here, so that the children need not load torch and its company again
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    left: list[str] = []
    sets = [covering for mutant in chosen if (covering := known.tests_of(mutant))]
    if sets and (fault := killer(tree, min(sets, key=len), known.limit(min(sets, key=len)))):
        raise SystemExit(f"without any change, {fault} fails")
    for number, mutant in enumerate(chosen, 1):
        start, source = time.monotonic(), (tree / mutant.file).read_bytes()
        covering = known.tests_of(mutant)
        fate = "uncovered"
        if covering is not None:
            (tree / mutant.file).write_bytes(mutant.applied(source))
            by = killer(tree, covering or ["-m", FAST, *tests], known.limit(covering))
            (tree / mutant.file).write_bytes(source)
            fate = f"killed by {by}" if by else "survived"
        print(f"{number}/{len(chosen)} {mutant}\n    {fate} ({time.monotonic() - start:.0f} s)", flush=True)
        if not fate.startswith("killed"):
            left.append(f"{fate}: {mutant}\n{difference(mutant)}{tests_that_ran(covering)}")
    print("\n".join(["", *left]))
    uncovered = sum(text.startswith("uncovered") for text in left)
    print(f"{len(chosen) - len(left)} killed, {len(left) - uncovered} survived, {uncovered} uncovered of {len(chosen)}")
    return int(bool(left))


def tests_that_ran(tests: Sequence[str] | None) -> str:
    """One line for each test file that saw a survivor."""
    if tests is None:
        return "no test runs this line\n"
    files = Counter(test.partition("::")[0] for test in tests)
    return "".join(f"{file}: {count} tests passed\n" for file, count in files.items()) or "all tests passed\n"


if __name__ == "__main__":
    sys.exit(main())
