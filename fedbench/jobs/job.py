"""The command that a scheduler executes: it does the named runs of a results folder. It needs no other arguments."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedbench.base import lease, storage
from fedbench.base.records import RecordsError, RunFolder
from fedbench.jobs import malloc_tuning
from fedbench.jobs.attempt import BrokenAccelerator, bring_to_end
from fedbench.jobs.failures import EXIT_BROKEN_ACCELERATOR, EXIT_LEFT
from fedbench.jobs.packing import PackGroups, train_together
from fedbench.jobs.stop_request import stop_request
from fedbench.run.simulation import Stopped

log = logging.getLogger("fedbench")


def run_job(results: Path, names: Sequence[str], spare: Sequence[str] = (), threads: int | None = None) -> None:
    """Bring the runs `names` below `results` to `done` or `failed.json`, one after another. A failed run does not stop others.

    Runs that have ended, or that a live process works on, are skipped. Afterwards this process also starts runs of `spare`,
    which belong to other workers, if no process ever started them. `threads` limits the threads that the runs' configs ask
    for. Raises RecordsError if `results` is not a folder, Stopped after a signal to stop, BrokenAccelerator if another
    process must continue.
    """
    if not storage.appears(results):
        raise RecordsError(f"{results}: no such results folder")
    malloc_tuning.keep_freed_memory()
    groups = PackGroups(results)
    for i, name in enumerate([*names, *spare]):
        folder = RunFolder(results / name)
        if i >= len(names) and lease.claim_files(folder.path):
            continue
        if _exists(folder):
            if len(group := groups.group_at(names, i)) > 1:
                train_together([RunFolder(results / member) for member in group], threads)
            bring_to_end(folder, threads)
        else:
            log.error("%s: no such run", folder.path)


def _exists(folder: RunFolder) -> bool:
    """Whether the run exists, after waiting for its disk."""
    while storage.appears(folder.path.parent):
        with suppress(OSError):
            # While the disk is away, is_dir() returns False, but iterdir() raises.
            return folder.path.is_dir() or folder.path in folder.path.parent.iterdir()
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit codes: 0 all done, 1 some failed, 2 no such folder, and those of `failures`."""
    parser = argparse.ArgumentParser(
        prog="python -m fedbench.jobs.job",
        description="Do planned runs in this process.",
        epilog="example: python -m fedbench.jobs.job results fedvpt-cifar100-dirichlet-s0-1a2b3c4d",
    )
    parser.add_argument("results", type=Path, help="results folder")
    parser.add_argument("names", nargs="*", metavar="NAME", help="folder names of runs in it; none: read from stdin")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    spare, threads, names = [], None, options.names
    supervised = not names
    if supervised:  # thousands of names do not fit a command line
        work = json.load(sys.stdin)
        names, spare, threads = work["names"], work["spare"], work["threads"]
    elif missing := [name for name in names if not (options.results / name).is_dir()]:
        parser.error(f"no such run in {options.results}: {', '.join(missing)}")
    # Slurm signals all processes of a job, not only the supervisor.
    before = {n: signal.signal(n, stop_request.receive) for n in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        run_job(options.results, names, spare, threads)
    except Stopped:
        return EXIT_LEFT
    except BrokenAccelerator as error:
        log.error("the accelerator is unusable in this process: %s", error)
        return EXIT_BROKEN_ACCELERATOR
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if supervised or all(RunFolder(options.results / name).status == "done" for name in names) else 1


if __name__ == "__main__":
    raise SystemExit(main())
