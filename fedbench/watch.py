"""What the runs of a sweep are doing: read from their folders and one question to Slurm, and shown while it changes."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedbench import claim, launch
from fedbench.config import PlannedRun
from fedbench.records import RunFolder, Status

COLOURS: dict[Status, str] = {
    "missing": "dim",
    "pending": "yellow",
    "running": "cyan",
    "failed": "red",
    "done": "green",
}
ROWS = 24  # of a live table; what does not fit is counted
SQUEUE_SECONDS = 10.0  # thousands of runs share this one question
PATIENCE_SECONDS = 30.0  # how long a file server may hide from us that a run was done before its job ended


@dataclass(frozen=True)
class View:
    """A run as a reader sees it. missing: nobody has it; pending: it waits for its turn; failed: `kind` says how."""

    name: str
    label: str
    state: Status
    round: int = 0
    rounds: int = 0
    images_per_second: float | None = None
    eta_seconds: float | None = None
    kind: str = ""
    reason: str = ""
    log: str = ""


class Observer:
    """Looks at runs again and again. A run whose job is gone counts as lost when it has been so for `patience` seconds."""

    def __init__(self, results: Path, runs: Sequence[PlannedRun], patience: float = 0.0) -> None:
        self.runs = {run.name: run for run in runs}
        self.folders = {name: RunFolder(results / name) for name in self.runs}
        self.patience = patience
        self._views: dict[str, View] = {}
        self._queue, self._asked_at, self._asked = launch.Queue(), 0.0, set[str]()
        self._first: dict[str, tuple[float, int]] = {}  # when each run was first seen, and in which round
        self._gone: dict[str, float] = {}

    def look(self) -> list[View]:
        """The state of every run, in the order of the sweep. What is done is not looked at twice."""
        rest = {n: f for n, f in self.folders.items() if n not in self._views or self._views[n].state != "done"}
        jobs = {name: launch.job_of(folder) for name, folder in rest.items()}
        ids = {str(job["id"]) for job in jobs.values() if job.get("scheduler") == "slurm"}
        if not ids <= self._asked or time.monotonic() - self._asked_at > SQUEUE_SECONDS:
            self._queue.ask(ids)
            self._asked, self._asked_at = ids, time.monotonic()
        for name, folder in rest.items():
            # First whether somebody has it, then how it stands: a run is done before its job ends.
            held, busy = self._held(jobs[name]), self._busy(folder, jobs[name])
            self._views[name] = self._view(name, folder, folder.status, jobs[name], held, busy)
        return [self._views[name] for name in self.runs]

    def _held(self, job: Mapping[str, Any]) -> bool:
        """Whether a job that has, or will do, the run is alive."""
        if job.get("scheduler") == "slurm":
            return self._queue.lives(str(job["id"]))
        host = socket.gethostname()
        return any(o["host"] == host and claim.alive(claim.Owner(**o)) for o in job.get("owners", ()))

    def _busy(self, folder: RunFolder, job: Mapping[str, Any]) -> bool:
        """Whether a live process does the run now. What Slurm says of its job outweighs a heartbeat."""
        owner = claim.holder(folder)
        return owner is not None and not (owner.job and owner.job == job.get("id") and not self._held(job))

    def _view(
        self, name: str, folder: RunFolder, status: Status, job: Mapping[str, Any], held: bool, busy: bool
    ) -> View:
        planned, progress = self.runs[name], folder.progress()
        view = View(name, planned.label, status, int(progress.get("round", 0)), planned.run.rounds)
        if status in ("done", "failed"):
            failure = folder.failure() if status == "failed" else {}
            kind, reason, log = (str(failure.get(key, "")) for key in ("kind", "reason", "log"))
            return replace(view, kind=kind, reason=reason, log=log)
        if busy:
            rate = progress.get("images_per_second")
            return replace(view, state="running", images_per_second=rate, eta_seconds=self._eta(view))
        self._first.pop(name, None)
        if held:
            return replace(view, state="pending")
        if not job:
            return replace(view, state="missing")
        since = self._gone.setdefault(name, time.monotonic())
        if time.monotonic() - since < self.patience:
            return replace(view, state="pending")
        who = f"Slurm job {job['id']}" if "id" in job else "the process that did it"
        reason = (
            f"{who} ended without a word (killed, cancelled, out of memory or time); the same command goes on with it"
        )
        return replace(view, state="failed", kind="lost", reason=reason, log=str(job.get("log", folder.log)))

    def _eta(self, view: View) -> float | None:
        now = time.monotonic()
        since, first = self._first.setdefault(view.name, (now, view.round))
        done = view.round - first
        return (view.rounds - view.round) * (now - since) / done if done > 0 else None


def counts(views: Sequence[View]) -> dict[str, int]:
    """How many runs are in each state, all states named."""
    found = Counter(view.state for view in views)
    return {state: found[state] for state in COLOURS}


def told(views: Sequence[View]) -> str:
    """Counts in a line: ``8 runs: 1 running, 7 done``."""
    parts = [f"{count} {state}" for state, count in counts(views).items() if count]
    return f"{len(views)} run{'' if len(views) == 1 else 's'}: {', '.join(parts) or 'none'}"


def failures(views: Sequence[View]) -> list[str]:
    """A line for each failed run."""
    return [f"failed {v.name} ({v.kind}): {v.reason} [log: {v.log}]" for v in views if v.state == "failed"]


def watch(observer: Observer, console: Console, ended: Callable[[], bool] = lambda: False) -> None:
    """Show the runs until none waits or runs, or `ended` says so: a live table on a terminal, else a line per change."""
    seen: dict[str, Status] = {}
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            last, start = ended(), time.monotonic()
            views = observer.look()
            if live:
                live.update(table(views), refresh=True)
            else:
                _tell_changes(views, seen, console)
            if last or not any(view.state in ("pending", "running") for view in views):
                return
            time.sleep(max(1.0, time.monotonic() - start))  # at most half the time of a slow file server is ours
    finally:
        if live:
            live.stop()


def _tell_changes(views: Sequence[View], seen: dict[str, Status], console: Console) -> None:
    for view in views:
        before = seen.get(view.name)
        seen[view.name] = view.state
        if view.state != before and (before is not None or view.state == "running"):
            more = f" ({view.kind}): {view.reason}" if view.state == "failed" else ""
            line = f"{time.strftime('%H:%M:%S')} {view.state:7} {view.name}{more}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(views: Sequence[View]) -> Group:
    """A live table: runs at work and failed ones first, then what waits, and a bar over all rounds."""
    order = {"running": 0, "failed": 1, "pending": 2, "missing": 3, "done": 4}
    rows = sorted(views, key=lambda view: order[view.state])
    made = Table(box=None, pad_edge=False)
    for name in ("run", "state", "round", "images/s", "ETA"):
        made.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=True)
    for view in rows[:ROWS]:
        rate = "" if view.images_per_second is None else f"{view.images_per_second:,.0f}"
        eta = "" if view.eta_seconds is None else str(timedelta(seconds=round(view.eta_seconds)))
        state = Text(view.kind or view.state, style=COLOURS[view.state])
        made.add_row(Text(view.name), state, f"{view.round}/{view.rounds}", rate, eta)
    hidden = f"and {len(rows) - ROWS} more" if len(rows) > ROWS else ""
    total = sum(view.rounds for view in views)
    over = sum(view.rounds if view.state in ("done", "failed") else view.round for view in views)
    return Group(made, Text(hidden, style="dim"), ProgressBar(total=max(1, total), completed=over), Text(told(views)))
