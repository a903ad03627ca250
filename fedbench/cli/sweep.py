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

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.records import RecordsError
from fedbench.cli.output import say, warn
from fedbench.data import DataError
from fedbench.jobs import cancellation, launch, slurm, watch
from fedbench.jobs.submission import plan
from fedbench.plan import content, tuning
from fedbench.plan.config import ConfigError, Sweep, short_name
from fedbench.plan.planning import read_sweep
from fedbench.plan.plugins import PluginError
from fedbench.plan.task_checks import Where

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
        cluster = given.cluster
        if cluster == "auto":
            cluster = "slurm" if shutil.which("sbatch") else "local"
        starts = not (given.status or given.cancel)
        where: Where | None = ("elsewhere" if cluster == "slurm" else "here") if starts else None
        whole = read_sweep(given.sweep, given.plugins, settings, where)
        sweep = tuning.next_stage(whole, results)
        if given.dry_run:
            return dry_run(sweep, results, given.json)
        if given.status:
            return status(sweep, results, given.json)
        if given.cancel:
            return cancel(sweep, results)
        if whole.tune:
            say(tuning.budget_text(whole))
        while True:
            for line in tuning.remarks(sweep):
                say(line)
            code = launch_and_watch(sweep, results, cluster, given.watch, given.retry_failed, again)
            before, sweep = {run.key for run in sweep.runs}, tuning.next_stage(whole, results)
            if code == INTERRUPTED or {run.key for run in sweep.runs} <= before:
                return code  # the trials, if there are any, have led to no further runs
    except BrokenPipeError:
        raise
    except (ConfigError, PluginError, RecordsError, launch.LaunchError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE


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
    say(f"\n{sweep.name}: {watch.summary(views)}{_later(sweep)}")
    say(f"to do: about {total:.2g} multiply-adds, at most {most / 1e9:.1f} GB of memory at once in a run")
    for text in [tuning.budget_text(sweep), *tuning.remarks(sweep)] if sweep.tune else ():
        say(text)
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
        whole = {"sweep": sweep.name, "results": str(results), "counts": watch.counts(views)}
        odd = watch.odd_files(results, sweep.runs, views)
        say(json.dumps({**whole, "odd_files": odd, "runs": [vars(view) for view in views]}))
    else:
        say(f"{sweep.name}: {watch.summary(views)}{_later(sweep)}")
        for line in watch.failed(views):
            say(line)
        for line in watch.odd_files(results, sweep.runs, views):
            say(f"odd file: {line}")
    return SOME_FAILED if watch.counts(views)["failed"] else DONE


def cancel(sweep: Sweep, results: Path) -> int:
    """End the jobs and local workers that this sweep started, and no others; its runs keep what they have."""
    if not results.is_dir():
        raise RecordsError(f"{results}: no such results folder")
    with launch.planning(results, warn):
        cancelled = cancellation.cancel(sweep, results)
    say(f"{sweep.name}: {cancelled.count} runs cancelled; the same command without --cancel goes on with them")
    for problem in cancelled.problems:
        say(problem)
    return DONE if cancelled.complete else SOME_FAILED


def launch_and_watch(
    sweep: Sweep, results: Path, cluster: str, stay: bool | None, retry_failed: bool, again: str
) -> int:
    """Launch what is missing, watch it to its end or leave it, and return the exit code."""
    console = Console(
        force_terminal=False if cluster == "inline" else None
    )  # a live table would be in a debugger's way
    if cluster == "slurm":
        slurm.check_folder(results)
    stay = (cluster != "slurm" or console.is_terminal) if stay is None else stay
    patience = watch.PATIENCE_SECONDS if cluster == "slurm" else watch.LOCAL_PATIENCE_SECONDS
    observer = watch.Observer(results, sweep.runs, patience, sweep.cluster.runs_per_gpu)
    with interruptible():
        try:
            with launch.planning(results, warn) as folder:
                names = plan(sweep, results, retry_failed, again, warn)
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
                f"{sweep.name}: {watch.summary(observer.look())}{_later(sweep)}; {len(names)} started{how}. Results: {results}"
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
    say(f"{sweep.name}: {watch.summary(views)}")
    for line in watch.failed(views):
        say(line)
    return _exit_code(views)


def _exit_code(views: Sequence[watch.View]) -> int:
    return DONE if all(view.state == "done" for view in views) else SOME_FAILED


def inline(results: Path, names: Sequence[str], observer: watch.Observer, console: Console | None) -> None:
    """Do the runs in this process, while a thread shows them."""
    from fedbench.jobs.attempt import BrokenAccelerator
    from fedbench.jobs.job import run_job

    over = threading.Event()
    shown = threading.Thread(target=watch.watch, args=(observer, console, over.is_set)) if console else None
    if shown:
        shown.start()
    try:
        run_job(results, names)
    except BrokenAccelerator as error:
        warn(f"the accelerator is of no more use to this process, so the same command has to go on: {error}")
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
