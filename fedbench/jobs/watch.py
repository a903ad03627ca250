"""The state of a sweep's runs, from their folders and one call of squeue, and the live table that shows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedbench.base import lease, missing_config
from fedbench.base.records import RunFolder, Status, rounds_in_words, status_of
from fedbench.jobs import failures, launch
from fedbench.jobs.slurm import Queue
from fedbench.plan.config import PlannedRun

COLOURS: dict[Status, str] = {
    "missing": "dim",
    "pending": "yellow",
    "running": "cyan",
    "failed": "red",
    "done": "green",
}
ROWS = 24  # of a table if the height of the terminal is unknown; runs that do not fit are counted
SQUEUE_SECONDS = 10.0  # between two calls of squeue, which thousands of runs share
HOW = {
    "lost": "without a note (killed, cancelled, out of memory or time)",
    "cancelled": "because it was cancelled",
    "timeout": "at its time limit",
    "node_failure": "with its node",
    "out_of_memory": "because memory ran out",
    "preempted": "because it was preempted",
}
GONE = "failed.json was removed a moment ago"
LOCAL_PATIENCE_SECONDS = 2.0
PATIENCE_SECONDS = 30.0  # a file server may hide for this long that a run was done


@dataclass(frozen=True)
class View:
    """The state of a run. missing: no job has it; pending: it waits for its turn; failed: `kind` says how.

    `earlier` counts earlier attempts by the kind of their end; `hours`: the time of a GPU (or process) spent on the run.
    """

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
    hours: float = 0.0
    gpu: bool = False
    earlier: dict[str, int] = field(default_factory=dict)


class Observer:
    """Looks at runs repeatedly. A run counts as lost once its job has been gone for `patience` seconds.

    `side_by_side` runs share a GPU, so each counts for its share of the GPU's hours.
    """

    def __init__(self, results: Path, runs: Sequence[PlannedRun], patience: float = 0.0, side_by_side: int = 1) -> None:
        self.runs = {run.name: run for run in runs}
        self.folders = {name: RunFolder(results / name) for name in self.runs}
        self.patience, self.side_by_side = patience, side_by_side
        self._views: dict[str, View] = {}
        self._queue, self._asked_at, self._asked = Queue(), 0.0, set[str]()
        self._first: dict[str, tuple[float, int]] = {}  # when each run was first seen, and in which round
        self._gone: dict[str, float] = {}

    def look(self) -> list[View]:
        """The state of every run, in the order of the sweep. A run that is done is not looked at twice."""
        rest = {n: f for n, f in self.folders.items() if n not in self._views or self._views[n].state != "done"}
        files = {name: folder.files() for name, folder in rest.items()}
        jobs = {n: f.job() for n, f in rest.items() if "job.json" in files[n] and "done" not in files[n]}
        ids = {str(job["id"]) for job in jobs.values() if job.get("scheduler") == "slurm"}
        if not ids <= self._asked or time.monotonic() - self._asked_at > SQUEUE_SECONDS:
            self._queue.ask(ids)
            self._asked, self._asked_at = ids, time.monotonic()
        for name, folder in rest.items():
            job, held, busy = jobs.get(name, {}), False, False
            claimed = lease.last_claim(folder.path, files[name]) is not None
            if (job or claimed) and "done" not in files[name]:
                # Check for a job first and for the run's state afterwards: a run is done before its job ends.
                held, busy = self._held(job), self._busy(folder, files[name], job)
                files[name] = folder.files()
            self._views[name] = self._view(name, folder, files[name], job, held, busy)
        return [self._views[name] for name in self.runs]

    def _held(self, job: Mapping[str, Any]) -> bool:
        """Whether the job that does, or will do, the run is alive."""
        if job.get("scheduler") == "slurm":
            return self._queue.lives(str(job["id"]))
        return any(launch.is_alive(owner) for owner in job.get("owners", ()))

    def _busy(self, folder: RunFolder, files: frozenset[str], job: Mapping[str, Any]) -> bool:
        """Whether a live process does the run now. The state of its Slurm job outweighs a heartbeat."""
        if (claim := lease.last_claim(folder.path, files)) is None:
            return False
        owner = lease.live_owner(claim)
        return owner is not None and not (owner.job and owner.job == job.get("id") and not self._held(job))

    def _view(
        self, name: str, folder: RunFolder, files: frozenset[str], job: Mapping[str, Any], held: bool, busy: bool
    ) -> View:
        planned, status = self.runs[name], status_of(files)
        progress = folder.progress() if "progress.json" in files else {}
        hours, gpu = float(progress.get("seconds", 0.0)) / 3600 / self.side_by_side, progress.get("device") == "cuda"
        done, rounds = int(progress.get("round", 0)), planned.run.rounds
        earlier = dict(failures.counted(folder.notes())) if "notes.jsonl" in files else {}
        view = partial(View, name, planned.label, round=done, rounds=rounds, hours=hours, gpu=gpu, earlier=earlier)
        if status == "done" and (damage := _damage(folder)):
            reason = f"it was done, but {'; '.join(damage)}; the same command repairs it"
            return view(state="failed", kind="damaged", reason=reason, log=str(folder.log))
        if status in ("done", "failed"):
            problems: list[str] = []
            failure = folder.failure(problems) if status == "failed" else {}
            if status == "failed" and not failure:
                failure = {"kind": "unknown", "reason": "; ".join(problems) or GONE, "log": str(folder.log)}
            kind, reason, log = (failure.get(key, "") for key in ("kind", "reason", "log"))
            return view(state=status, kind=kind, reason=reason, log=log)
        if busy:
            rate = progress.get("images_per_second")
            return view(state="running", images_per_second=rate, eta_seconds=self._eta(name, done, rounds))
        self._first.pop(name, None)
        if held:
            waits = self._queue.why(str(job["id"])) if "id" in job else ""
            return view(state="pending", reason=waits)
        if not job:
            return view(state="missing")
        since = self._gone.setdefault(name, time.monotonic())
        if time.monotonic() - since < self.patience:
            return view(state="pending")
        log = Path(job["log"])
        kind = self._queue.end(str(job["id"]), log) if "id" in job else "lost"
        who = f"Slurm job {job['id']} ended" if "id" in job else "the process that did it ended"
        reason = f"{who} {HOW[kind]}; the same command continues it"
        return view(state="failed", kind=kind, reason=reason, log=str(log))

    def _eta(self, name: str, round_: int, rounds: int) -> float | None:
        now = time.monotonic()
        since, first = self._first.setdefault(name, (now, round_))
        done = round_ - first
        return (rounds - round_) * (now - since) / done if done > 0 else None


def _damage(folder: RunFolder) -> list[str]:
    """The damage to a run that is marked as done."""
    try:
        return folder.damage()
    except OSError as error:
        return [f"{error.filename or folder.path} cannot be read now ({error.strerror or error})"]


def odd_files(results: Path, runs: Sequence[PlannedRun], views: Sequence[View]) -> list[str]:
    """A sentence for each odd file and each gap in the records of the runs, and for each folder without a run.yaml.

    The records of a run that is done are checked with its state (`RunFolder.damage`).
    """
    lines: list[str] = []
    for planned, view in zip(runs, views, strict=True):
        folder = RunFolder(results / planned.name)
        if view.state == "done":
            folder.environment(lines)
            folder.notes(lines)
        elif folder.files():
            lines += folder.problems()
            lines += _gap(folder, planned, view.round)
    return lines + [missing_config.sentence(folder) for folder in missing_config.folders_without_config(results)]


def _gap(folder: RunFolder, planned: PlannedRun, reached: int) -> list[str]:
    """A sentence if the records lack a round that was done."""
    if missing := folder.missing_rounds(planned.run.rounds, planned.run.evaluate_every, reached):
        return [f"{folder.path / 'records.jsonl'} lacks {rounds_in_words(missing)} of {reached} that were done"]
    return []


def counts(views: Sequence[View]) -> dict[str, int]:
    """The number of runs in each state, including zeros."""
    by_state = Counter(view.state for view in views)
    return {state: by_state[state] for state in COLOURS}


def summary(views: Sequence[View]) -> str:
    """Counts in a line: ``8 runs: 1 running, 7 done``."""
    parts = [f"{count} {state}" for state, count in counts(views).items() if count]
    return f"{len(views)} run{'' if len(views) == 1 else 's'}: {', '.join(parts) or 'none'}"


def failed(views: Sequence[View]) -> list[str]:
    """A line for each failed run, and for each run that continues after a failed attempt."""
    lines = []
    for view in views:
        times = ", ".join(f"{kind} {count}" for kind, count in view.earlier.items())
        if view.state == "failed":
            more = f"; failed attempts: {times}" if sum(view.earlier.values()) > 1 else ""
            lines.append(f"failed {view.name} ({view.kind}): {view.reason}{more} [log: {view.log}]")
        elif times and view.state != "done":
            lines.append(f"{view.state} {view.name} again, failed attempts: {times}")
    return lines


def used(views: Sequence[View]) -> str:
    """The present images per second, and the hours so far: of GPUs if any was used, else of processes."""
    rate = sum(view.images_per_second or 0.0 for view in views)
    hours = sum(view.hours for view in views)
    unit = "GPU" if any(view.gpu for view in views) else "process"
    return f"{rate:,.0f} images/s, {hours:,.2f} {unit}-hours so far"


def watch(observer: Observer, console: Console, ended: Callable[[], bool] = lambda: False) -> None:
    """Show the runs until none waits or runs, or `ended()` holds: a live table on a terminal, else a line per change."""
    last_states: dict[str, Status] = {}
    begun: tuple[float, int] | None = None  # the time, and the rounds that were done then
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            last, start = ended(), time.monotonic()
            views = observer.look()
            if live:
                over, rounds = sum(_over(view) for view in views), sum(view.rounds for view in views)
                begun = begun or (start, over)
                more = over - begun[1]
                eta = (rounds - over) * (start - begun[0]) / more if more > 0 else None
                live.update(table(views, max(3, console.height - 7), eta), refresh=True)
            else:
                _print_changes(views, last_states, console)
            if last or not any(view.state in ("pending", "running") for view in views):
                return
            time.sleep(max(1.0, time.monotonic() - start))  # use at most half the time of a slow file server
    finally:
        if live:
            live.stop()


def _print_changes(views: Sequence[View], last_states: dict[str, Status], console: Console) -> None:
    for view in views:
        before = last_states.get(view.name)
        last_states[view.name] = view.state
        if view.state != before and (before is not None or view.state == "running"):
            more = f" ({view.kind}): {view.reason}" if view.state == "failed" else ""
            # The folder's name leaves out the aggregation and all options, which the label tells.
            row = "" if view.name.startswith(f"{view.label}-") else f" [{view.label}]"
            line = f"{time.strftime('%H:%M:%S')} {view.state:7} {view.name}{row}{more}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(views: Sequence[View], rows: int = ROWS, eta: float | None = None) -> Group:
    """A live table: two lines and a bar for all runs, then `rows` of them, running and failed runs first."""
    order = {"running": 0, "failed": 1, "pending": 2, "missing": 3, "done": 4}
    ranked = sorted(views, key=lambda view: order[view.state])
    made = Table(box=None, pad_edge=False)
    for name in ("run", "state", "round", "images/s", "ETA"):
        made.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=True)
    for view in ranked[:rows]:
        rate = "" if view.images_per_second is None else f"{view.images_per_second:,.0f}"
        state = Text(view.kind or view.state, style=COLOURS[view.state])
        made.add_row(Text(view.name), state, f"{view.round}/{view.rounds}", rate, _clock(view.eta_seconds))
    hidden = f"and {len(ranked) - rows} more" if len(ranked) > rows else ""
    over = sum(_over(view) for view in views)
    bar = Padding(ProgressBar(total=max(1, sum(view.rounds for view in views)), completed=over), 0)  # ends its line
    last = f"{used(views)}{'' if eta is None else f', ETA {_clock(eta)}'}"
    return Group(Text(summary(views)), Text(last), bar, made, Text(hidden, style="dim"))


def _over(view: View) -> int:
    return view.rounds if view.state in ("done", "failed") else view.round


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
