"""Attempts at a run: from its folder to `done` or `failed.json`, as often as the rules of `failures` allow."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from fedbench.base import lease, naming, process_cache, provenance, storage
from fedbench.base.records import DamagedError, RecordsError, RunFolder
from fedbench.data import DataError
from fedbench.jobs import environment, failures, trackers
from fedbench.jobs.stop_request import stop_request
from fedbench.plan.config import ConfigError, Machine, PlannedRun
from fedbench.plan.planning import planned_from_disk
from fedbench.plan.plugins import PluginError, Plugins
from fedbench.run.simulation import Diverged, Stopped, run_rounds
from fedbench.vit.backbone import BackboneError

log = logging.getLogger("fedbench")

FAILURE_KINDS: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
    ("diverged", (Diverged,)),
    ("data", (DataError,)),
    ("damaged", (DamagedError,)),
    ("config", (ConfigError, PluginError, BackboneError, RecordsError)),
    ("out_of_memory", (MemoryError, torch.OutOfMemoryError)),
)
# Messages of allocators that have no exception class: PyTorch's on the CPU, and those of the BLAS and DNN libraries.
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "unable to allocate"),
    *("failed to allocate", "could not allocate", "bad_alloc", "_status_alloc_failed", "cublas_status_not_initialized"),
)
# Messages of errors after which CUDA (or HIP) refuses every further call of the process.
BROKEN_ACCELERATOR = (
    *(
        "device-side assert",
        "illegal memory access",
        "illegal instruction",
        "misaligned address",
        "invalid program counter",
    ),
    *("operation not supported on global/shared address space", "unspecified launch failure", "hardware stack error"),
    *("uncorrectable ecc", "uncorrectable nvlink", "the launch timed out and was terminated"),
)
# Files of a run's folder that are written only by the process that holds the folder.
WRITTEN_BY_ATTEMPTS = (
    *("checkpoint.safetensors", "clients.parquet", "records.jsonl", "env.json", "progress.json"),
    *("done", "failed.json"),
)


class BrokenAccelerator(RuntimeError):
    """The accelerator is unusable in this process. Its runs need another process."""


class Outcome(Enum):
    """What this process does after an attempt at a run."""

    RETRY = "another attempt"
    FINISHED = "nothing more: it is done, it has failed, or another process works on it"


def bring_to_end(folder: RunFolder, threads: int | None) -> None:
    """Attempt a run as often as the rules of `failures` allow. Raises Stopped and BrokenAccelerator."""
    patience = storage.Patience()
    furthest = -1
    while _attempt(folder, threads, patience) is Outcome.RETRY:
        if folder.progress().get("round", 0) > furthest:
            furthest = folder.progress().get("round", 0)
            patience.restore()


def has_ended(folder: RunFolder) -> bool:
    """Whether a run has failed, or is done and whole. Raises OSError."""
    return not folder.damage() if folder.status == "done" else folder.status == "failed"


def _attempt(folder: RunFolder, threads: int | None, patience: storage.Patience) -> Outcome:
    if stop_request.received:
        raise Stopped(f"{folder.path.name}: not started")
    try:
        if has_ended(folder):
            log.info("%s: %s before", folder.path.name, folder.status)
            return Outcome.FINISHED
        with lease.acquire(folder.path) as held:
            if held is None:
                log.info("%s: another process works on it", folder.path.name)
                return Outcome.FINISHED
            return Outcome.FINISHED if has_ended(folder) else _attempt_held(folder, threads, held)
    except (Stopped, BrokenAccelerator):
        raise
    except lease.Overtaken as error:
        log.warning("%s: %s", folder.path.name, error)
        return Outcome.FINISHED
    except Exception as error:  # raised by the lease, or while noting how the attempt ended
        if not storage.is_away(error, folder.path):
            log.exception("%s: given up", folder.path.name)
            return Outcome.FINISHED
        log.warning("%s: its disk is full or away (%s); waiting", folder.path.name, error)
        if patience():
            return Outcome.RETRY
        log.error("%s: its disk was full or away for too long: %s", folder.path.name, error)
        with suppress(OSError):
            failures.note(folder, "storage", f"its disk was full or away for too long: {error}")
        return Outcome.FINISHED


def _attempt_held(folder: RunFolder, threads: int | None, held: lease.Lease) -> Outcome:
    """An attempt at a run that this process holds. Raises what `_attempt` waits for."""
    with logging_to(folder.log):
        if _after_the_last_attempt(folder, held) is Outcome.FINISHED:
            return Outcome.FINISHED
        try:
            folder.finish(_run(folder, threads, held))
        except (Stopped, lease.Overtaken):
            log.info("stopping; a later process continues the run")
            raise
        except Exception as error:
            if storage.is_away(error, folder.path):
                raise
            kind, reason = _kind_of(error), " ".join(f"{type(error).__name__}: {error}".split())
            log.exception("failed (%s)", kind)
            at = {"round": folder.progress()["round"]} if "round" in folder.progress() else {}
            outcome = end(folder, kind, reason, **at)
            if is_broken_accelerator(error):
                raise BrokenAccelerator(reason) from error
            error.__traceback__ = None  # it refers to the tensors that did not fit
        else:
            log.info("done")
            held.remove_claims()
            return Outcome.FINISHED
    free_memory()
    return outcome


def _after_the_last_attempt(folder: RunFolder, held: lease.Lease) -> Outcome:
    """Note how the previous attempt ended, if that is not noted, and remove its files. Returns whether the run may continue."""
    outcome = Outcome.RETRY
    storage.remove_abandoned_writes(folder.path, WRITTEN_BY_ATTEMPTS)
    if folder.status == "done" and (problems := folder.damage()):
        log.warning("the run was done, but is damaged: %s", "; ".join(problems))
        folder.reopen()
        outcome = end(folder, "damaged", "; ".join(problems))
    owner = held.abandoned_by
    if owner is not None and not failures.is_noted(folder, owner):
        outcome = end(folder, "lost", f"its process on {owner.host} ended without a note")
    return outcome


def end(folder: RunFolder, kind: str, reason: str, **more: Any) -> Outcome:
    """Note that an attempt ended. Mark the run as failed if the kind of its end allows no further attempt."""
    if failures.note(folder, kind, reason, **more):
        return Outcome.RETRY
    folder.fail(kind, reason, **more)
    return Outcome.FINISHED


def _run(folder: RunFolder, threads: int | None, held: lease.Lease) -> dict[str, str]:
    """Do the remaining rounds. Returns the checksums of the files that the run wrote."""
    ready = prepare(folder, threads)
    planned, track = ready.planned, ready.machine.track
    with trackers.tracked(folder, track, {"label": planned.label, **naming.flat(planned.identity)}) as tracked_folder:
        return run_rounds(
            planned, ready.machine, ready.plugins, tracked_folder, must_leave(held), halvings=ready.halvings
        )


def must_leave(held: lease.Lease) -> Callable[[], bool]:
    """The function that tells a run after each round whether it must leave. It raises Overtaken."""

    def asked_to_stop() -> bool:
        held.check()
        return stop_request.received

    return asked_to_stop


@dataclass(frozen=True)
class Prepared:
    """A run as its folder describes it. `halvings`: how often to halve the number of images in a pass."""

    planned: PlannedRun
    machine: Machine
    plugins: Plugins
    halvings: int


def prepare(folder: RunFolder, threads: int | None, pack_size: int = 1) -> Prepared:
    """Read a run that this process will do, alone or in a pack of `pack_size` runs, and write env.json.

    Raises RecordsError, ConfigError, PluginError and OSError.
    """
    config = folder.config()
    try:
        planned, machine, plugins = planned_from_disk(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordsError(f"{folder.path / 'run.yaml'}: not a whole config ({error!r})") from error
    if planned.identity != config["identity"]:
        raise RecordsError(
            f"{folder.path / 'run.yaml'} does not describe the run of its identity: a plug-in's fields or a file that "
            "it names has changed since the run was planned; start the sweep again"
        )
    if halvings := failures.halvings(folder.notes()):
        log.warning("memory ran out before: images in a pass halved %d times", halvings)
    # The same number on every machine: it decides the order of sums, and so the last bits of every result.
    torch.set_num_threads(min(int(config.get("cpus", 1)), threads or sys.maxsize))
    code = provenance.code_hash(plugins.files(planned.identity))
    here = environment.write(
        folder, {"code": code, "sweep_command": config.get("command"), "pack": pack_size, "compile": machine.compile}
    )
    log.info("start of %s on %s, commit %s", folder.path.name, here["hostname"], here["commit"])
    if config.get("code") not in (None, provenance.code_hash()):
        log.warning("the code has changed since the sweep planned this run")
    return Prepared(planned, machine, plugins, halvings)


def free_memory() -> None:
    """Free all memory of an attempt."""
    gc.collect()
    process_cache.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _kind_of(error: Exception) -> str:
    """The kind of failure of an error, or of the error that it was raised from."""
    if is_broken_accelerator(error):
        return "crashed"
    for cause in storage.causes(error):
        for kind, classes in FAILURE_KINDS:
            if isinstance(cause, classes):
                return kind
    return "out_of_memory" if _mentions(error, Exception, OUT_OF_MEMORY) else "error"


def is_broken_accelerator(error: BaseException) -> bool:
    """Whether the accelerator is unusable in this process after `error`."""
    return _mentions(error, RuntimeError, BROKEN_ACCELERATOR)


def _mentions(error: BaseException, kind: type[Exception], phrases: tuple[str, ...]) -> bool:
    """Whether the message of `error`, or of an error of this kind that caused it, contains one of the phrases."""
    texts = [str(cause).lower() for cause in storage.causes(error) if isinstance(cause, kind)]
    return any(phrase in text for phrase in phrases for text in texts)


class _PatientLog(logging.FileHandler):
    """A log file that tolerates a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: the next write to the run's own files fails on the same disk."""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Also write all logs and warnings of this process to `path`."""
    root, handler = logging.getLogger(), _PatientLog(path)
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
