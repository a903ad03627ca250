"""A report on one device, in parts: each is a process of its own, with a time limit, and writes its own JSON as it goes.

So a part that fails, hangs or leaves the device unusable costs no other part's results. Parts that measure no speed run side by
side. The last part is a sweep in worker processes, which resumes from its results folder and is stopped at the deadline.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.base.storage import write_atomically
from fedbench.bench import goals

DEADLINE = 540.0  # seconds
STOPPING = 30.0  # seconds before the deadline in which workers reach the end of their round
WORTHWHILE = 5.0  # seconds; a part with less time is not started
Work = tuple[
    str, float, Callable[[float], dict[str, Any]]
]  # a part's name, share of the time, and what does it in seconds
STDERR = 2000  # characters of a failed part's last words that are kept


@dataclass(frozen=True)
class Part:
    """A part of the report: its name, the module's arguments, and its share of the time that is left when it starts."""

    name: str
    arguments: tuple[str, ...]
    share: float


def stages(small: bool) -> list[list[Part]]:
    """The stages before the sweep: the parts of a stage run side by side, so a stage of speeds has one part.

    ``small``: the smallest case and few methods, to try the command on a CPU.
    """
    cases = ("smoke@16",) if small else ("vit_base@224", "vit_tiny@96", "nano@32")
    size = ("small",) if small else ()
    return [
        [Part("device", ("device", *size), 0.3)],
        [Part(name, (name, *size), 0.4) for name in ("agreement", "contract")],
        *([Part(f"speed_{case.replace('@', '_')}", ("speed", case), 0.4)] for case in cases),
    ]


@dataclass(frozen=True)
class ReportOptions:
    """What to report on, and where."""

    folder: Path
    device: str
    small: bool = False
    deadline: float = DEADLINE  # seconds from the start
    sweep: Path | None = None
    results: Path | None = None  # of the sweep; default: below `folder`
    plugins: Sequence[Path] = ()


def write_report(options: ReportOptions, say: Callable[[str], None]) -> int:
    """Run all parts and write ``report.json``: how each ended, and an answer to each speed goal.

    Returns 0, or 1 if a part failed.
    Raises OSError if the folder cannot be written.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.deadline
    summary: dict[str, Any] = {"device": options.device, "deadline_seconds": options.deadline, "parts": {}}
    todo: list[list[Work]] = [[_work(part, options) for part in stage] for stage in stages(options.small)]
    if options.sweep is not None:
        todo.append([("sweep", 1.0, lambda seconds: run_sweep(options, seconds))])
    for stage in todo:
        left = end - time.monotonic()
        with ThreadPoolExecutor(len(stage)) as threads:
            outcomes = list(threads.map(lambda work, left=left: _timed(work[2], left * work[1], left), stage))
        for (name, _, _), outcome in zip(stage, outcomes, strict=True):
            summary["parts"][name] = outcome
            say(
                f"{name}: {outcome['status']}" + (f" ({outcome['why'].splitlines()[-1]})" if outcome.get("why") else "")
            )
        _write(options.folder / "report.json", summary)  # after each stage, in case this process is ended
    summary["goals"] = goals.answers(options.folder)
    _write(options.folder / "report.json", summary)
    for goal in summary["goals"]:
        if goal["measured"] is not None:
            say(f"goal: {goal['goal']}: {goals.in_words(goal)}")
    return int(any(part["status"] in ("failed", "timed out") for part in summary["parts"].values()))


def _work(part: Part, options: ReportOptions) -> Work:
    return part.name, part.share, lambda seconds: run_part(part, options, seconds)


def _timed(run: Callable[[float], dict[str, Any]], seconds: float, left: float) -> dict[str, Any]:
    """How a part ended that had `seconds` of the time `left`, and the seconds it took."""
    if seconds < WORTHWHILE:
        return {"status": "skipped", "why": f"{left:.0f} s were left"}
    start = time.monotonic()
    return run(seconds) | {"seconds": round(time.monotonic() - start, 1)}


def run_part(part: Part, options: ReportOptions, seconds: float) -> dict[str, Any]:
    """Run a part in its own process for at most `seconds`; what it has written by then stays. Returns how it ended."""
    file = options.folder / f"{part.name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "fedbench.bench.device_parts", str(file), options.device, *part.arguments]
    outcome = _outcome(command, seconds)
    if not file.exists():
        _write(file, {})
    return outcome


def _outcome(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a command for at most `seconds`; ``{"status": "done" | "failed" | "timed out", "why": ...}``."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, words = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"status": "timed out", "why": f"after {seconds:.0f} s"}
    if process.returncode == 0:
        return {"status": "done"}
    return {"status": "failed", "why": words.strip()[-STDERR:] or f"exit code {process.returncode}"}


def run_sweep(options: ReportOptions, seconds: float) -> dict[str, Any]:
    """Do the runs of the sweep file that are missing, for `seconds`, and write their states to ``sweep.json``.

    Workers that are still busy are asked to stop at the end of their round; the same results folder goes on from there.
    """
    results = options.results or options.folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    sweep = [sys.executable, "-m", "fedbench.sweep", str(options.sweep), "--results", str(results)]
    sweep += ["--set", f"machine.device={options.device}"]
    if options.plugins:
        sweep += ["--plugins", *map(str, options.plugins)]
    outcome = _outcome([*sweep, "--cluster", "local", "--watch"], max(WORTHWHILE, seconds - STOPPING))
    if outcome["status"] == "timed out":  # the workers are processes of their own and go on
        stopped = subprocess.run([*sweep, "--cancel"], capture_output=True, text=True, timeout=4 * STOPPING)
        outcome = {"status": "stopped at the deadline", "why": (stopped.stdout or stopped.stderr).strip()}
    listed = subprocess.run([*sweep, "--status", "--json"], capture_output=True, text=True)
    if listed.stdout.startswith("{"):
        _write(options.folder / "sweep.json", json.loads(listed.stdout))
    return outcome


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())
