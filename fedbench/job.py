"""Runs from their folders to `done`: what a scheduler executes. It gets a results folder and run names, nothing else."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedbench import measure, naming, track
from fedbench.backbone import BackboneError
from fedbench.claim import claim, claims
from fedbench.config import ConfigError, planned_from_disk
from fedbench.data import DataError
from fedbench.plugins import PluginError
from fedbench.records import RecordsError, RunFolder, write_aside
from fedbench.simulation import Diverged, simulate

log = logging.getLogger("fedbench")

# Set by a signal handler that ends the job by an ordinary exception: such an exception is no failure of the run.
interrupted = threading.Event()

KINDS: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
    ("diverged", (Diverged,)),
    ("data", (DataError,)),
    ("config", (ConfigError, PluginError, BackboneError, RecordsError)),
    ("out_of_memory", (MemoryError, torch.OutOfMemoryError)),
)


def run_job(results: Path, names: Sequence[str], spare: Sequence[str] = (), threads: int | None = None) -> None:
    """Bring the runs `names` below `results` to `done` or `failed.json`, one after another; none stops the others.

    Runs that have ended are passed over, and those that a live process works on. When all is done, the runs `spare` are
    begun as well, each only if nobody ever began it: the packs of other workers, for one who is through with his own.
    `threads` limits the threads that the runs' configs ask for. Raises RecordsError where `results` is no folder.
    """
    if not results.is_dir():
        raise RecordsError(f"{results}: no such results folder")
    for name in [*names, *spare]:
        folder = RunFolder(results / name)
        if not folder.path.is_dir():
            log.error("%s: no such run", folder.path)
        elif name in names or not claims(folder):
            _one(folder, threads)


def _one(folder: RunFolder, threads: int | None) -> None:
    with claim(folder) as mine:
        if not mine:
            return log.info("%s: another process works on it", folder.path.name)
        if folder.status in ("done", "failed"):
            return log.info("%s: %s before", folder.path.name, folder.status)
        with _logging_to(folder.log):
            try:
                _attempt(folder, threads)
            except Exception as error:
                if interrupted.is_set():
                    raise
                kind, reason = _kind(error), " ".join(f"{type(error).__name__}: {error}".split())
                log.exception("failed (%s)", kind)
                at = {"round": folder.progress()["round"]} if "round" in folder.progress() else {}
                folder.fail(kind, reason, **at)


def _attempt(folder: RunFolder, threads: int | None) -> None:
    config = folder.config()
    planned, machine, found = planned_from_disk(config)
    if planned.identity != config.get("identity"):
        raise RecordsError(
            f"{folder.path / 'run.yaml'} describes another run than its identity says: a plug-in's fields or a file that "
            "it names has changed since the run was planned; start the sweep again"
        )
    # The same number wherever a run is done: it decides the order of sums, and so the last bits of every number.
    torch.set_num_threads(min(int(config.get("cpus", 1)), threads or sys.maxsize))
    environment, path = _environment(), folder.path / "env.json"
    log.info("start of %s on %s, commit %s", folder.path.name, environment["hostname"], environment["commit"])
    if path.exists() and (before := json.loads(path.read_text())) != environment:
        changed = {key: (before.get(key), now) for key, now in environment.items() if before.get(key) != now}
        log.warning("begun before in another environment; its numbers mix both: %s", changed)
    write_aside(path, json.dumps(environment, indent=2).encode())
    with track.tracked(folder, machine.track, {"label": planned.label, **naming.flat(planned.identity)}) as followed:
        simulate(planned, machine, found, followed)
    log.info("done")
    folder.finish()


def _kind(error: Exception) -> str:
    for kind, classes in KINDS:
        if isinstance(error, classes):
            return kind
    text = str(error).lower()  # the CPU allocator has no class of its own
    return "out_of_memory" if "out of memory" in text or "can't allocate memory" in text else "error"


def _environment() -> dict[str, Any]:
    commit = measure.commit()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "timm", "numpy")},
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit and commit.rstrip("+"),
        "dirty": commit and commit.endswith("+"),
    }


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Everything logged or warned in this process goes to `path` as well."""
    root, handler = logging.getLogger(), logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level, log_level = root.level, log.level
    root.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        log.setLevel(log_level)
        root.removeHandler(handler)
        handler.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m fedbench.job RESULTS NAME...``; 0: all done, 1: some failed, 2: no such folder."""
    parser = argparse.ArgumentParser(
        prog="python -m fedbench.job",
        description="Bring planned runs to their end in this process.",
        epilog="example: python -m fedbench.job results fedvpt-cifar100-dirichlet-s0-1a2b3c4d",
    )
    parser.add_argument("results", type=Path, help="results folder")
    parser.add_argument("names", nargs="+", metavar="NAME", help="folder names of runs in it")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    missing = [name for name in given.names if not (given.results / name).is_dir()]
    if missing:
        parser.error(f"no such run in {given.results}: {', '.join(missing)}")
    run_job(given.results, given.names)
    return 0 if all(RunFolder(given.results / name).status == "done" for name in given.names) else 1


if __name__ == "__main__":
    raise SystemExit(main())
