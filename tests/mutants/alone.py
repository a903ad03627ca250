"""Trials in a process that has loaded nothing of the tree, for changes outside functions or of what runs at import."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .coverage_map import FAST, TestMap
from .planting import Mutant
from .trial import OPTIONS, Runner, forked
from .warm import planted


@dataclass(eq=False)
class LoneSession:
    """A plug-in of pytest that runs tests in a certain order until one fails."""

    runner: Runner
    order: list[str]
    fate: str = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        self.runner.pytest_runtest_logreport(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest."""
        if report.failed and not self.fate:
            self.fate = f"killed by {report.nodeid}, which cannot be imported"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called by pytest."""
        self.fate = self.fate or self.runner.run({item.nodeid: item for item in session.items}, self.order)
        return True


def lone_fate(tree: Path, mutant: Mutant, known: TestMap, budget: float) -> str:
    """What the tests say to a mutant that is in the file before anything is imported."""
    path = tree / mutant.file
    old = path.read_bytes()
    order = known.order(mutant, old)
    files = list(dict.fromkeys(test.partition("::")[0] for test in order))

    def work() -> str:
        os.chdir(tree)
        sys.path[:0] = [str(tree), str(tree / "tests")]
        session = LoneSession(Runner(known, budget), order)
        pytest.main([*OPTIONS, "-m", FAST, *files], plugins=[session])
        return session.fate or "undecided: no test was run"

    with planted(path, mutant.applied(old)):
        return forked(work)
