"""The command line of a sweep: plan its runs, show them, launch those that are missing, and watch them."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fedbench.base import provenance
from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.lease import claims, owner_in
from fedbench.base.records import RecordsError, RunFolder
from fedbench.data import DataError
from fedbench.jobs import failures, launch, slurm, watch
from fedbench.plan import content, tuning
from fedbench.plan.config import ConfigError, Sweep, pack_key, short_name
from fedbench.plan.planning import read_sweep
from fedbench.plan.plugins import PluginError

DONE, SOME_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
The same command again goes on where the last one stopped: done runs are kept, queued and running ones left alone, failed
ones tried again only with --retry-failed. Ctrl-C only stops watching: jobs on Slurm and local workers go on, and --cancel
ends them. Exit code: 0 all done (or, with --no-watch, submitted), 1 some runs failed, 2 a mistake in the file or on the
command line.

examples:
  %(prog)s sweeps/quickstart.yaml
  %(prog)s sweeps/quickstart.yaml --dry-run --set rounds=5 --set local.lr=0.05
  %(prog)s sweeps/main_table.yaml --cluster slurm --no-watch
  %(prog)s sweeps/main_table.yaml --status --json
  %(prog)s sweeps/main_table.yaml --cancel
"""


def parser(program: str = "python -m fedbench.sweep") -> argparse.ArgumentParser:
    """The options, each with an example."""
    made = argparse.ArgumentParser(
        prog=program,
        description="Do all runs of a sweep file that are not done yet.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which_runs(made)
    made.add_argument(
        "--cluster",
        choices=("auto", "inline", "local", "slurm"),
        default="auto",
        help="inline: this process; local: one process per GPU or core; auto: slurm where sbatch is found, else local; "
        "e.g. --cluster local",
    )
    made.add_argument(
        "--clients", choices=("stacked", "loop"), help="loop: one client at a time, slow and plain; e.g. --clients loop"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="list the runs and what they will take; nothing is written"
    )
    made.add_argument("--status", action="store_true", help="say how the runs stand; nothing is started")
    made.add_argument(
        "--cancel", action="store_true", help="end the jobs and local workers of this sweep; its runs can go on later"
    )
    made.add_argument(
        "--watch",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="stay until the runs have ended; the default on a terminal, and off Slurm; e.g. --no-watch",
    )
    made.add_argument("--retry-failed", action="store_true", help="try failed runs again, e.g. after freeing the disk")
    return made


def which_runs(made: argparse.ArgumentParser) -> None:
    """Add the options that say which runs are meant, where they are, and who reads the answer."""
    made.add_argument(
        "sweep", type=Path, help="sweep file, e.g. sweeps/quickstart.yaml; fedbench's own also by name: quickstart"
    )
    made.add_argument("--results", type=Path, default=Path("results"), help="e.g. --results /scratch/me/results")
    made.add_argument(
        "--plugins",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="your own plug-ins, e.g. --plugins mine/",
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="override a value of the file for all runs, e.g. --set rounds=5 --set cluster.gpus=0 --set seed=3",
    )
    made.add_argument("--json", action="store_true", help="for scripts, e.g. to count what failed")


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "python -m fedbench.sweep") -> int:
    """Do what the command line says and return the exit code."""
    options = parser(program)
    given = options.parse_args(arguments)
    if given.json and not (given.status or given.dry_run):
        options.error("--json goes with --status or --dry-run")
    if given.status + given.dry_run + given.cancel > 1:
        options.error("--status, --dry-run and --cancel exclude each other")
    settings = [*given.settings, *([f"machine.clients={given.clients}"] if given.clients else [])]
    results = given.results.expanduser().resolve()
    again = f"{program} " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    try:
        whole = read_sweep(given.sweep, given.plugins, settings)
        sweep = tuning.staged(whole, results)
        if given.dry_run:
            return dry_run(sweep, results, given.json)
        if given.status:
            return status(sweep, results, given.json)
        if given.cancel:
            return cancel(sweep, results)
        cluster = given.cluster
        if cluster == "auto":
            cluster = "slurm" if shutil.which("sbatch") else "local"
        while True:
            code = launch_and_watch(sweep, results, cluster, given.watch, given.retry_failed, again)
            waited, sweep = len(sweep.later), tuning.staged(whole, results)
            if code == INTERRUPTED or len(sweep.later) >= waited:
                return code  # nothing waits for trials, or what waits still does
    except BrokenPipeError:
        raise
    except (ConfigError, PluginError, RecordsError, launch.LaunchError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE


def say(text: str) -> None:
    """A line on stdout, there at once even in a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def dry_run(sweep: Sweep, results: Path, as_json: bool) -> int:
    """List all runs with their state and what they will take; nothing is submitted or written."""
    from fedbench.run import cost  # it imports timm, which takes seconds; only here is it needed
    from fedbench.vit.backbone import BackboneError

    estimates: dict[str, cost.Estimate | str] = {}  # runs that differ in what costs nothing share one
    problems: dict[str, None] = {}
    views = watch.Observer(results, sweep.runs).look()
    rows: list[dict[str, Any]] = []
    states = [*((planned, planned.name, view.state) for planned, view in zip(sweep.runs, views, strict=True))]
    states += [(planned, "(named when tuned)", "missing") for planned in sweep.later]
    for planned, name, state in states:
        free = ("seed", "seeds", "partition", "evaluate_every")
        key = json.dumps({name: value for name, value in planned.identity.items() if name not in free}, sort_keys=True)
        if key not in estimates:
            try:
                estimates[key] = cost.estimate(planned, sweep.plugins, sweep.machine)
            except (DataError, BackboneError) as error:
                estimates[key] = str(error)
        guess = estimates[key]
        run, classes = planned.run, sweep.plugins.classes
        row = {
            "name": name,
            "method": planned.label + " [trial]" * ("trial_of" in planned.tuning),
            "dataset": short_name(run.dataset, classes["dataset"][run.dataset["name"]]),
            "partition": short_name(run.partition, classes["partition"][run.partition["name"]]),
            "seed": run.seed,
            "state": state,
        }
        if isinstance(guess, str):
            problems[guess] = None
            rows.append({**row, "multiply_adds": None, "memory_bytes": None})
        else:
            rows.append({**row, "multiply_adds": guess.multiply_adds, "memory_bytes": guess.memory_bytes})
    todo = [row for row in rows if row["state"] != "done" and row["multiply_adds"] is not None]
    total = sum(row["multiply_adds"] for row in todo)
    most = max((row["memory_bytes"] for row in todo), default=0)
    if as_json:
        say(json.dumps({"sweep": sweep.name, "counts": watch.counts(views), "multiply_adds": total, "runs": rows}))
        return DONE
    cells = [tuple(rows[0])] + [tuple(_cell(key, value) for key, value in row.items()) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    say(f"\n{sweep.name}: {watch.told(views)}{_later(sweep)}")
    say(f"to do: about {total:.2g} multiply-adds, at most {most / 1e9:.1f} GB of memory at once in a run")
    for problem in problems:
        say(f"no estimate: {problem}")
    return DONE


def _later(sweep: Sweep) -> str:
    return f"; {len(sweep.later)} more wait for trials of the tuning" if sweep.later else ""


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "?"
    if key == "memory_bytes":
        return f"{value / 1e9:.1f} GB"
    return f"{value:.2g}" if key == "multiply_adds" else str(value)


def status(sweep: Sweep, results: Path, as_json: bool) -> int:
    """Say how the runs stand."""
    views = watch.Observer(results, sweep.runs).look()
    if as_json:
        found = {"sweep": sweep.name, "results": str(results), "counts": watch.counts(views)}
        say(json.dumps({**found, "runs": [vars(view) for view in views]}))
    else:
        say(f"{sweep.name}: {watch.told(views)}{_later(sweep)}")
        for line in watch.failed(views):
            say(line)
    return SOME_FAILED if watch.counts(views)["failed"] else DONE


def cancel(sweep: Sweep, results: Path) -> int:
    """End the jobs and local workers that this sweep started, and no others; its runs keep what they have."""
    if not results.is_dir():
        raise RecordsError(f"{results}: no such results folder")
    with launch.planning(results):
        views = watch.Observer(results, sweep.runs).look()
        live = {view.name for view in views if view.state in ("pending", "running")}
        jobs = {name: launch.job_of(RunFolder(results / name)) for name in live}
        mine = {name: job for name, job in jobs.items() if job.get("sweep") == sweep.name}
        refused = slurm.cancel(str(job["id"]) for job in mine.values() if "id" in job)
        owners = {json.dumps(owner): owner for job in mine.values() for owner in job.get("owners", ())}
        here = [owner for owner in owners.values() if launch.holds(owner)]
        ended = launch.stop(here)
        gone = [name for name, job in mine.items() if "id" in job or all(o in here for o in job["owners"])]
        if not refused and ended:
            launch.forget(results, gone)
    say(f"{sweep.name}: {len(gone)} runs cancelled; the same command without --cancel goes on with them")
    away = sorted({str(owner["host"]) for owner in owners.values() if owner not in here})
    for problem in (
        refused,
        "" if ended else "Some local processes have not ended yet; ask again in a minute.",
        f"Some run on {', '.join(away)}; cancel them there." if away else "",
        f"{len(live) - len(mine)} were started by another sweep and go on." if len(mine) < len(live) else "",
    ):
        if problem:
            say(problem)
    return DONE if not refused and ended and not away else SOME_FAILED


def plan(sweep: Sweep, results: Path, retry_failed: bool, command: str) -> list[str]:
    """Write the folders of the runs to do, and return their names, those that killed a process before last.

    Raises RecordsError, before anything is written, where a folder holds a run of another config.
    """
    folders = {planned.name: RunFolder(results / planned.name) for planned in sweep.runs}
    for planned in sweep.runs:
        folder = folders[planned.name]
        if (folder.path / "run.yaml").exists():
            folder.plan({**folder.config(), "identity": planned.identity})  # changes nothing, but compares
    names = []
    for planned, view in zip(sweep.runs, watch.Observer(results, sweep.runs).look(), strict=True):
        folder = folders[planned.name]
        if view.state == "failed" and (folder.path / "failed.json").exists():
            if not retry_failed:
                continue
            folder.note(kind=failures.RETRY, reason="asked for")
            folder.clear_failure()
        elif view.state == "failed" and not _may_go_on(folder, view) and not retry_failed:
            folder.fail(view.kind, view.reason)
            continue
        if view.state in ("missing", "failed"):
            folder.plan({**sweep.on_disk(planned), "command": command, "code": provenance.code_hash()})
            names.append(planned.name)
    if sweep.machine.pack:  # a job has neighbours, and a worker its share of each such group
        like = {planned.name: pack_key(planned.identity) for planned in sweep.runs}
        first = {like[name]: i for i, name in reversed(list(enumerate(names)))}
        names.sort(key=lambda name: first[like[name]])
    return sorted(names, key=lambda name: len(folders[name].notes()))


def _may_go_on(folder: RunFolder, view: watch.View) -> bool:
    """Note how the job of a run ended, unless its process noted that itself or had not begun; whether it may go on."""
    last = claims(folder.path)[-1:]
    dead = owner_in(last[0]) if last else None
    if dead is None or any(
        (note.get("pid"), note.get("started")) == (dead.pid, dead.started) for note in folder.notes()
    ):
        return True
    return failures.note(folder, view.kind, view.reason, pid=dead.pid, started=dead.started)


def launch_and_watch(
    sweep: Sweep, results: Path, cluster: str, stay: bool | None, retry_failed: bool, again: str
) -> int:
    """Launch what is missing, watch it to its end or leave it, and return the exit code."""
    console = Console(
        force_terminal=False if cluster == "inline" else None
    )  # a live table would be in a debugger's way
    stay = (cluster != "slurm" or console.is_terminal) if stay is None else stay
    patience = watch.PATIENCE_SECONDS if cluster == "slurm" else watch.LOCAL_PATIENCE_SECONDS
    observer = watch.Observer(results, sweep.runs, patience, sweep.cluster.runs_per_gpu)
    with interruptible():
        try:
            with launch.planning(results) as folder:
                names = plan(sweep, results, retry_failed, again)
                content.save()  # jobs then find the hashes of the user's files
                how = ""
                if names and cluster == "inline":
                    launch.note_inline(sweep, results, names)
                elif names and cluster == "local":
                    count = launch.local(sweep, results, names, folder)
                    how = f" in {count} local process{'' if count == 1 else 'es'}"
                elif names:
                    how = f" to Slurm: {', '.join(slurm.submit(sweep, results, names, folder))}"
            say(
                f"{sweep.name}: {watch.told(observer.look())}{_later(sweep)}; {len(names)} started{how}. Results: {results}"
            )
            if cluster == "inline":
                inline(results, names, observer, console if stay else None)
            elif stay:
                watch.watch(observer, console)
            else:
                say(f"Nothing waits for them here; see how they stand with: {again} --status")
                return SOME_FAILED if not names and watch.counts(observer.look())["failed"] else DONE
        except KeyboardInterrupt:
            say(leave(cluster, again))
            return INTERRUPTED
    views = observer.look()
    say(f"{sweep.name}: {watch.told(views)}")
    for line in watch.failed(views):
        say(line)
    return _exit_code(views)


def _exit_code(views: Sequence[watch.View]) -> int:
    return DONE if all(view.state == "done" for view in views) else SOME_FAILED


def inline(results: Path, names: Sequence[str], observer: watch.Observer, console: Console | None) -> None:
    """Do the runs in this process, while a thread shows them."""
    from fedbench.jobs.job import run_job

    over = threading.Event()
    shown = threading.Thread(target=watch.watch, args=(observer, console, over.is_set)) if console else None
    if shown:
        shown.start()
    try:
        run_job(results, names)
    finally:
        over.set()
        if shown:
            shown.join()


@contextmanager
def interruptible() -> Iterator[None]:
    """A SIGTERM (a closed CI job, `timeout`) is treated as a Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(cluster: str, again: str) -> str:
    """What a Ctrl-C does, in words: nothing is cancelled, except that this process does no more runs itself."""
    if cluster == "inline":
        return f"\nStopped; unfinished runs go on from their last checkpoint with: {again}"
    what = "all jobs go on" if cluster == "slurm" else "the local workers go on"
    return f"\nNo longer watching; nothing was cancelled and {what}. Come back with: {again}\nEnd them with: {again} --cancel"
