"""The command line of a sweep: plan its runs, show them, start the missing ones, and watch them."""

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

from rich.console import Console

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.records import RecordsError
from fedbench.cli.dry_run import dry_run, later
from fedbench.cli.options import add_plugins, add_settings
from fedbench.cli.output import say, warn
from fedbench.jobs import cancellation, launch, slurm, watch
from fedbench.jobs.submission import plan
from fedbench.plan import content, tuning
from fedbench.plan.config import ConfigError, Sweep
from fedbench.plan.planning import check_not_begun, read_sweep
from fedbench.plan.plugins import PluginError
from fedbench.plan.task_checks import Where

DONE, SOME_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
The same command resumes the sweep. It keeps runs that are done, leaves queued and running runs alone, repairs damaged runs,
and tries failed runs again only with --retry-failed. Ctrl-C only stops watching: jobs on Slurm and local workers continue,
and --cancel ends them. Exit code: 0 all done (or, with --no-watch, submitted), 1 some runs failed, 2 a mistake in the file
or on the command line.

examples:
  %(prog)s sweeps/quickstart.yaml
  %(prog)s sweeps/quickstart.yaml --dry-run --set rounds=5 --set local.lr=0.05
  %(prog)s sweeps/main_table.yaml --cluster slurm --no-watch
  %(prog)s sweeps/main_table.yaml --status --json
  %(prog)s sweeps/main_table.yaml --cancel
"""


def parser(program: str = "fedbench sweep") -> argparse.ArgumentParser:
    """The options, each with an example."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Do all runs of a sweep file that are not done yet.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(options)
    options.add_argument(
        "--cluster",
        choices=("auto", "inline", "local", "slurm"),
        default="auto",
        help="inline: this process; local: one process per GPU or core; auto: slurm if there is sbatch, else local; "
        "e.g. --cluster local",
    )
    options.add_argument(
        "--clients",
        choices=("stacked", "loop"),
        help="loop: train one client at a time, which is slower; e.g. --clients loop",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="list the runs and their estimated costs; nothing is written"
    )
    options.add_argument("--status", action="store_true", help="show the state of the runs; nothing is started")
    options.add_argument(
        "--cancel", action="store_true", help="end the jobs and local workers of this sweep; its runs can resume later"
    )
    options.add_argument(
        "--watch",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="stay until the runs have ended: the default on a terminal and without Slurm; e.g. --no-watch",
    )
    options.add_argument(
        "--retry-failed", action="store_true", help="try failed runs again, e.g. after freeing the disk"
    )
    return options


def add_run_options(options: argparse.ArgumentParser) -> None:
    """Add the options that select runs, the folder of results, and the form of the output."""
    options.add_argument(
        "sweep", type=Path, help="sweep file, e.g. sweeps/quickstart.yaml; fedbench's own also by name: quickstart"
    )
    options.add_argument("--results", type=Path, default=Path("results"), help="e.g. --results /scratch/me/results")
    add_plugins(options)
    add_settings(
        options, "override a value of the file for all runs, e.g. --set rounds=5 --set cluster.gpus=0 --set seed=3"
    )
    options.add_argument("--json", action="store_true", help="print JSON, e.g. for a script that counts failed runs")


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench sweep") -> int:
    """Run the command line and return the exit code."""
    command_line = parser(program)
    options = command_line.parse_args(arguments)
    if options.json and not (options.status or options.dry_run):
        command_line.error("--json goes with --status or --dry-run")
    if options.status + options.dry_run + options.cancel > 1:
        command_line.error("--status, --dry-run and --cancel exclude each other")
    command = f"{program} " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(options, command)
    except BrokenPipeError:
        raise
    except (ConfigError, PluginError, RecordsError, launch.LaunchError, OSError) as error:
        warn(f"error: {error}")
        return MISTAKE


def _run(options: argparse.Namespace, command: str) -> int:
    """Execute the parsed options, and return the exit code. Raises the errors that `main` reports."""
    settings = [*options.settings, *([f"machine.clients={options.clients}"] if options.clients else [])]
    results = options.results.expanduser().resolve()
    cluster = options.cluster
    if cluster == "auto":
        cluster = "slurm" if shutil.which("sbatch") else "local"
    starts = not (options.status or options.cancel)
    where: Where | None = ("elsewhere" if cluster == "slurm" else "here") if starts else None
    whole = read_sweep(options.sweep, options.plugins, settings, where)
    sweep = tuning.next_stage(whole, results)
    if options.dry_run:
        dry_run(sweep, results, options.json)
        return DONE
    if options.status:
        return status(sweep, results, options.json, str(options.sweep))
    if options.cancel:
        return cancel(sweep, results)
    if whole.tune:
        say(tuning.budget_text(whole))
    while True:
        for line in tuning.remarks(sweep):
            say(line)
        code = launch_and_watch(sweep, results, cluster, options.watch, options.retry_failed, command)
        before, sweep = {run.key for run in sweep.runs}, tuning.next_stage(whole, results)
        if code == INTERRUPTED or {run.key for run in sweep.runs} <= before:
            return code  # no trials, or the trials have led to no further runs


def status(sweep: Sweep, results: Path, as_json: bool, source: str) -> int:
    """Show the state of the runs, and return the exit code.

    Runs without a folder are checked against their task as before a start; the others were checked when they were planned,
    and looking at them must be fast. Raises ConfigError.
    """
    observer = watch.Observer(results, sweep.runs)
    views = observer.look()
    missing = {view.name for view in views if view.state == "missing" and not observer.folders[view.name].files()}
    check_not_begun(sweep, missing, source)
    if as_json:
        whole = {"sweep": sweep.name, "results": str(results), "counts": watch.counts(views)}
        odd = watch.odd_files(results, sweep.runs, views)
        say(json.dumps({**whole, "odd_files": odd, "runs": [vars(view) for view in views]}))
    else:
        say(f"{sweep.name}: {watch.summary(views)}{later(sweep)}")
        for line in watch.failed(views):
            say(line)
        for line in watch.odd_files(results, sweep.runs, views):
            say(f"odd file: {line}")
    return SOME_FAILED if watch.counts(views)["failed"] else DONE


def cancel(sweep: Sweep, results: Path) -> int:
    """End the jobs and local workers that this sweep started, and no others. Its runs keep their files."""
    if not results.is_dir():
        raise RecordsError(f"{results}: no such results folder")
    with launch.planning(results, warn):
        cancelled = cancellation.cancel(sweep, results)
    say(f"{sweep.name}: {cancelled.count} runs cancelled; the same command without --cancel continues them")
    for problem in cancelled.problems:
        say(problem)
    return DONE if cancelled.complete else SOME_FAILED


def launch_and_watch(
    sweep: Sweep, results: Path, cluster: str, stay: bool | None, retry_failed: bool, command: str
) -> int:
    """Start the missing runs, watch them to their end or leave them, and return the exit code.

    `stay`: whether to watch; None: if there is a terminal, and always without Slurm. `command` is repeated in messages.
    """
    # A live table would disturb a debugger.
    console = Console(force_terminal=False if cluster == "inline" else None)
    stay = (cluster != "slurm" or console.is_terminal) if stay is None else stay
    patience = watch.PATIENCE_SECONDS if cluster == "slurm" else watch.LOCAL_PATIENCE_SECONDS
    observer = watch.Observer(results, sweep.runs, patience, sweep.cluster.runs_per_gpu)
    with interruptible():
        try:
            names, where = start(sweep, results, cluster, retry_failed, command)
            state = f"{sweep.name}: {watch.summary(observer.look())}{later(sweep)}"
            say(f"{state}; {len(names)} started{where}. Results: {results}")
            if cluster == "inline":
                inline(results, names, observer, console if stay else None)
            elif stay:
                watch.watch(observer, console)
            else:
                say(f"This command does not wait for them; see their state with: {command} --status")
                return SOME_FAILED if not names and watch.counts(observer.look())["failed"] else DONE
        except KeyboardInterrupt:
            say(interrupted(cluster, command))
            return INTERRUPTED
    views = observer.look()
    say(f"{sweep.name}: {watch.summary(views)}")
    for line in watch.failed(views):
        say(line)
    return DONE if all(view.state == "done" for view in views) else SOME_FAILED


def start(sweep: Sweep, results: Path, cluster: str, retry_failed: bool, command: str) -> tuple[list[str], str]:
    """Plan the missing runs and hand them over. Returns their names, and words that say to whom. Raises LaunchError."""
    if cluster == "slurm":
        slurm.check_folder(results)
    with launch.planning(results, warn) as folder:
        names = plan(sweep, results, retry_failed, command, warn)
        content.save()  # so that jobs find the hashes of the user's files
        where = ""
        if names and cluster == "inline":
            launch.note_inline(sweep, results, names)
        elif names and cluster == "local":
            count = launch.local(sweep, results, names, folder)
            where = f" in {count} local process{'' if count == 1 else 'es'}"
        elif names:
            where = f" to Slurm: {', '.join(slurm.submit(sweep, results, names, folder))}"
    return names, where


def inline(results: Path, names: Sequence[str], observer: watch.Observer, console: Console | None) -> None:
    """Do the runs in this process while a thread shows their state."""
    from fedbench.jobs.attempt import BrokenAccelerator
    from fedbench.jobs.job import run_job

    over = threading.Event()
    display = threading.Thread(target=watch.watch, args=(observer, console, over.is_set)) if console else None
    if display:
        display.start()
    try:
        run_job(results, names)
    except BrokenAccelerator as error:
        warn(f"the accelerator is unusable in this process; repeat the command to continue: {error}")
    finally:
        over.set()
        if display:
            display.join()
        launch.forget_inline(results, names)


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat a SIGTERM (of a closed CI job, of `timeout`) as a Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(cluster: str, again: str) -> str:
    """A message about the effect of Ctrl-C: nothing is cancelled, but this process does no more runs itself."""
    if cluster == "inline":
        return f"\nStopped; resume unfinished runs from their last checkpoints with: {again}"
    what = "all jobs continue" if cluster == "slurm" else "the local workers continue"
    kept = f"\nNo longer watching; nothing was cancelled and {what}."
    return f"{kept} Watch them again with: {again}\nEnd them with: {again} --cancel"
