"""One trial: run the tests of a mutant in their order in a forked process until the first one fails."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest

from .coverage_map import TestMap

# What was loaded before the fork cannot have its assertions rewritten, and need not.
WARNING = "ignore::pytest.PytestAssertRewriteWarning"
OPTIONS = (
    *("-q", "-s", "--timeout", "120", "-W", WARNING),
    *("-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:unraisableexception"),
)
HANGS = 1800  # seconds after which a trial that says nothing is ended


@dataclass(eq=False)
class Runner:
    """Runs collected tests and remembers the first that fails; a plug-in of pytest."""

    known: TestMap
    budget: float  # seconds of processor time for the tests of one mutant
    failed: str = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def run(self, items: Mapping[str, pytest.Item], order: Sequence[str]) -> str:
        """What became of the mutant, after the tests named in `order` that were collected."""
        chosen = [items[test] for test in order if test in items]
        start = spent()
        for number, item in enumerate(chosen):
            if spent() - start > self.budget:
                return f"survived {number} of {len(chosen)} tests, which took {self.budget:.0f} s"
            limit_processor_time(30 + 10 * self.known.seconds(item.nodeid))
            following = chosen[number + 1] if number + 1 < len(chosen) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return f"killed by {self.failed}"
        return f"survived all {len(chosen)} tests" if chosen else "uncovered"


def spent() -> float:
    """The seconds of processor time of this process and of those that it waited for."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def limit_processor_time(seconds: float) -> None:
    """End this process after so many further seconds of processor time: a mutant may loop for ever."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    at = int(use.ru_utime + use.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (at, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def forked(work: Callable[[], str], hangs: float | None = HANGS) -> str:
    """The answer of `work`, done in a process that ends with all that it started, after `hangs` seconds at the latest."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(receiving)
            os.setsid()
            silence = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(silence, stream)
            answer = work()
        except BaseException:  # noqa: BLE001 - whatever it is, it is the answer
            answer = "undecided: an error outside tests: " + traceback.format_exc().strip().splitlines()[-1]
        os.write(sending, answer.encode())
        os._exit(0)
    os.close(sending)
    try:
        ready, _, _ = select.select([receiving], [], [], hangs)
        return (os.read(receiving, 65536).decode() or "killed by a process that died") if ready else "killed by hanging"
    finally:
        os.close(receiving)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
