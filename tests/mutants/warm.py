"""Trials in a session of pytest that has loaded all tests: a fork swaps the code of the changed functions."""

from __future__ import annotations

import gc
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .coverage_map import FAST, TestMap
from .planting import Mutant
from .swapping import changed_functions, swap
from .trial import OPTIONS, Runner, forked

ALONE = "needs a process of its own"


@contextmanager
def planted(path: Path, new: bytes) -> Iterator[None]:
    """The file holds `new`, for processes that the tests start and for modules that they load."""
    old = path.read_bytes()
    path.write_bytes(new)
    try:
        yield
    finally:
        path.write_bytes(old)


@dataclass(eq=False)
class Calls:
    """Which code of the tree runs while tests are loaded: swapping it later would be too late."""

    tree: Path
    codes: set[tuple[str, str, int]] = field(default_factory=set)

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        """Called by the interpreter at every call."""
        code = frame.f_code
        if event == "call" and code.co_flags & 0x2 and code.co_filename.startswith(str(self.tree)):
            self.codes.add((code.co_filename, code.co_qualname, code.co_firstlineno))


@dataclass(eq=False)
class WarmSession:
    """A plug-in of pytest that tries mutants instead of running tests."""

    tree: Path
    chosen: Sequence[Mutant]
    known: TestMap
    budget: float
    tell: Callable[[int, str], None]
    calls: Calls

    def __post_init__(self) -> None:
        self.runner = Runner(self.known, self.budget)

    def pytest_collection_modifyitems(self) -> None:
        """Called by pytest."""
        sys.setprofile(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        self.runner.pytest_runtest_logreport(report)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called by pytest."""
        if session.testsfailed:
            raise SystemExit("some tests cannot be loaded")
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()
        killers: dict[str, list[int]] = {}
        for number, mutant in enumerate(self.chosen):
            fate = self.fate(mutant, items)
            self.tell(number, fate)
            if (test := fate.removeprefix("killed by ")) in items:
                self.known.note_kill(test, mutant)
                killers.setdefault(test, []).append(number)
        self.check(killers, items)
        return True

    def check(self, killers: dict[str, list[int]], items: Mapping[str, pytest.Item]) -> None:
        """Take back what tests said that fail without any change as well."""
        runner = Runner(self.known, budget=float("inf"))
        self.runner = runner
        while (fate := forked(lambda: runner.run(items, sorted(killers)))).startswith("killed by "):
            test = fate.removeprefix("killed by ")
            for number in killers.pop(test):
                self.tell(number, f"undecided: {test} fails without any change")

    def fate(self, mutant: Mutant, items: Mapping[str, pytest.Item]) -> str:
        """What the tests say to a mutant, or ALONE."""
        path = self.tree / mutant.file
        old = path.read_bytes()
        new = mutant.applied(old)
        changed = changed_functions(old, new, str(path))
        if changed is None or any((str(path), x.co_qualname, x.co_firstlineno) in self.calls.codes for x, _ in changed):
            return ALONE
        order = self.known.order(mutant, old)

        def work() -> str:
            gc.unfreeze()
            swap(path, old, new)
            gc.freeze()  # else every full collection walks, and so copies, all that was loaded before the fork
            return self.runner.run(items, order)

        with planted(path, new):
            return forked(work)


def warm_fates(
    tree: Path, chosen: Sequence[Mutant], known: TestMap, budget: float, tell: Callable[[int, str], None]
) -> None:
    """Tell the fate of each mutant, by its number, from a process that loads all tests once."""
    calls = Calls(tree)
    session = WarmSession(tree, chosen, known, budget, tell, calls)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    sys.setprofile(calls)
    code = pytest.main([*OPTIONS, "-m", FAST, *sorted(known.measured)], plugins=[session])
    if code:
        raise SystemExit(f"pytest ended with {code!r}")
