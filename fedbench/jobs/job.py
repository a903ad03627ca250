"""Runs from their folders to `done`: what a scheduler executes. It gets a results folder and run names, nothing else."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fedbench.base import lease, naming, process_cache, provenance, storage
from fedbench.base.records import RecordsError, RunFolder
from fedbench.data import DataError
from fedbench.jobs import environment, failures, malloc_tuning, trackers
from fedbench.plan.config import ConfigError, Machine, PlannedRun, pack_key
from fedbench.plan.planning import planned_from_disk
from fedbench.plan.plugins import PluginError, Plugins
from fedbench.run import pack
from fedbench.run.meter import SharedClock
from fedbench.run.pack import Member
from fedbench.run.simulation import Diverged, Stopped, begin, run_rounds
from fedbench.vit.backbone import BackboneError

log = logging.getLogger("fedbench")

LEFT = 3  # exit code of a process that was asked to leave before its runs had ended


class Leaving:
    """Whether a signal has asked this process to leave at the next round boundary.

    No threading.Event: two signals at once, both setting it, would wait for each other for ever.
    """

    asked = False

    def ask(self, *_: Any) -> None:
        """A signal handler."""
        self.asked = True


leaving = Leaving()

FAILURE_KINDS: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
    ("diverged", (Diverged,)),
    ("data", (DataError,)),
    ("config", (ConfigError, PluginError, BackboneError, RecordsError)),
    ("out_of_memory", (MemoryError, torch.OutOfMemoryError)),
)


def run_job(results: Path, names: Sequence[str], spare: Sequence[str] = (), threads: int | None = None) -> None:
    """Bring the runs `names` below `results` to `done` or `failed.json`, one after another; none stops the others.

    Runs that have ended are passed over, and those that a live process works on. When all is done, the runs `spare` are
    begun as well, each only if nobody ever began it: the packs of other workers, for one who is through with his own.
    `threads` limits the threads that the runs' configs ask for. Raises RecordsError where `results` is no folder, Stopped
    once `leaving` was asked for.
    """
    if not storage.waited_for(results):
        raise RecordsError(f"{results}: no such results folder")
    malloc_tuning.keep_freed_memory()
    relatives = _PackGroups(results)
    for i, name in enumerate([*names, *spare]):
        folder = RunFolder(results / name)
        if i >= len(names) and lease.claims(folder.path):
            continue
        if _there(folder):
            if len(group := relatives.of(names, i)) > 1:
                _together([RunFolder(results / one) for one in group], threads)
            _one(folder, threads)
        else:
            log.error("%s: no such run", folder.path)


def _there(folder: RunFolder) -> bool:
    """Whether there is such a run, once its disk is there."""
    while storage.waited_for(folder.path.parent):
        with suppress(OSError):
            # Away for a moment, the one is just False, but the other raises.
            return folder.path.is_dir() or folder.path in folder.path.parent.iterdir()
    return False


class _PackGroups:
    """Which runs of a job can be trained together, by their configs; each is named once."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.pack_key: dict[str, str | None] = {}
        self.named: set[str] = set()

    def of(self, names: Sequence[str], at: int) -> list[str]:
        """The run ``names[at]`` and those behind it that are like it; none where it was named before."""
        if at >= len(names) or names[at] in self.named or (own := self._kin(names[at])) is None:
            return []
        found = [name for name in names[at:] if self._kin(name) == own]
        self.named.update(found)
        return found

    def _kin(self, name: str) -> str | None:
        if name not in self.pack_key:
            folder = RunFolder(self.results / name)
            try:
                config = folder.config()
                packed = config["machine"].get("pack") and not _alone(folder, config)
                self.pack_key[name] = pack_key(config["identity"]) if packed else None
            except (RecordsError, OSError, KeyError):  # its own try tells
                self.pack_key[name] = None
        return self.pack_key[name]


def _alone(folder: RunFolder, config: Mapping[str, Any]) -> bool:
    """Whether a run has to go by itself: a tracker has one at a time, and what met trouble of its own is better off so."""
    trouble = {note["kind"] for note in folder.notes()} - {"preempted", "timeout", "cancelled", "node_failure"}
    return bool(config["machine"]["track"] or trouble or folder.status in ("done", "failed"))


def _together(folders: Sequence[RunFolder], threads: int | None) -> None:
    """Bring runs that can be trained together as far as that goes; what goes wrong is left to each one's own tries.

    Raises Stopped once `leaving` was asked for.
    """
    if leaving.asked:
        raise Stopped(f"{len(folders)} runs: not begun")
    with ExitStack() as stack:
        members: list[tuple[RunFolder, lease.Hold, Member]] = []
        for folder in folders:
            try:
                if (ours := stack.enter_context(_member(folder, threads, len(folders)))) is not None:
                    members.append((folder, *ours))
            except Exception as error:  # noqa: BLE001
                log.warning("%s: not packed: %s", folder.path.name, error)
        if len(members) > 1:
            try:
                pack.run_pack([member for _, _, member in members])
            except Exception:
                log.exception("%d runs cannot be trained together; each goes on by itself", len(members))
        for folder, hold, member in members:
            with _logging_to(folder.log):
                if member.error is None and member.state.over:
                    log.info("done")
                    folder.finish()
                    hold.finish()
                else:
                    log.info(
                        "leaving the pack after round %d: %s", member.state.rounds_done, member.error or "it ended"
                    )
        stopped = any(isinstance(member.error, Stopped) for _, _, member in members)
    del members
    _let_go()
    if stopped:
        raise Stopped(f"{len(folders)} runs trained together")


@contextmanager
def _member(folder: RunFolder, threads: int | None, size: int) -> Iterator[tuple[lease.Hold, Member] | None]:
    """The run as one of a pack, held against others; None where that cannot be. Raises whatever beginning it raises."""
    with lease.claim(folder.path) as hold:
        if hold is None or hold.dead is not None or folder.status in ("done", "failed"):
            yield None
            return
        with _logging_to(folder.log):
            clock = SharedClock()
            with clock.counting():
                state = begin(*_ready(folder, threads, size), folder, clock)
        yield hold, Member(state, clock, _leave(hold), lambda: _logging_to(folder.log))


def _one(folder: RunFolder, threads: int | None) -> None:
    """Try a run as often as the rules of its failures allow."""
    patience = storage.Patience()
    begun = -1
    while not _tried(folder, threads, patience):
        if folder.progress().get("round", 0) > begun:
            begun = folder.progress().get("round", 0)
            patience.restore()


def _tried(folder: RunFolder, threads: int | None, patience: storage.Patience) -> bool:
    """One try; whether it is to be the last."""
    if leaving.asked:
        raise Stopped(f"{folder.path.name}: not begun")
    try:
        if folder.status in ("done", "failed"):
            log.info("%s: %s before", folder.path.name, folder.status)
            return True
        with lease.claim(folder.path) as hold:
            if hold is None:
                log.info("%s: another process works on it", folder.path.name)
                return True
            return folder.status in ("done", "failed") or _held(folder, threads, hold)
    except Stopped:
        raise
    except lease.Overtaken as error:
        log.warning("%s: %s", folder.path.name, error)
        return True
    except Exception as error:  # of the claim or of writing down how the try ended
        if not storage.is_away(error, folder.path):
            log.exception("%s: given up", folder.path.name)
            return True
        log.warning("%s: its disk is full or away (%s); waiting", folder.path.name, error)
        if patience():
            return False
        with suppress(OSError):
            failures.note(folder, "storage", f"its disk was full or away for too long: {error}")
        return True


def _held(folder: RunFolder, threads: int | None, hold: lease.Hold) -> bool:
    """One try of a run that is ours; whether it is to be the last. Raises what `_tried` waits for."""
    with _logging_to(folder.log):
        if hold.dead is not None and not _known(folder, hold.dead):
            _end(folder, "lost", f"the process that did it on {hold.dead.host} ended without a word")
            if folder.status == "failed":
                return True
        try:
            _attempt(folder, threads, hold)
        except (Stopped, lease.Overtaken):
            log.info("leaving it to a later life")
            raise
        except Exception as error:
            if storage.is_away(error, folder.path):
                raise
            kind, reason = _kind(error), " ".join(f"{type(error).__name__}: {error}".split())
            log.exception("failed (%s)", kind)
            at = {"round": folder.progress()["round"]} if "round" in folder.progress() else {}
            again = _end(folder, kind, reason, **at)
            error.__traceback__ = None  # it holds the tensors that did not fit
        else:
            log.info("done")
            folder.finish()
            hold.finish()
            return True
    _let_go()
    return not again


def _let_go() -> None:
    """Of all memory that a try took."""
    gc.collect()
    process_cache.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _known(folder: RunFolder, dead: lease.Owner) -> bool:
    """Whether the end of a process was written down already by whoever kept it."""
    return any(note.get("pid") == dead.pid and note.get("started") == dead.started for note in folder.notes())


def _end(folder: RunFolder, kind: str, reason: str, **more: Any) -> bool:
    """Write down that a try ended; the run has failed where its rule allows no more. Whether it does."""
    again = failures.note(folder, kind, reason, **more)
    if not again:
        folder.fail(kind, reason, **more)
    return again


def _attempt(folder: RunFolder, threads: int | None, hold: lease.Hold) -> None:
    planned, machine, found = _ready(folder, threads)
    with trackers.tracked(folder, machine.track, {"label": planned.label, **naming.flat(planned.identity)}) as followed:
        run_rounds(planned, machine, found, followed, _leave(hold))


def _leave(hold: lease.Hold) -> Callable[[], bool]:
    """What a run asks after each round: whether it must leave. Raises Overtaken."""

    def leave() -> bool:
        hold.check()
        return leaving.asked

    return leave


def _ready(folder: RunFolder, threads: int | None, size: int = 1) -> tuple[PlannedRun, Machine, Plugins]:
    """The run as its folder describes it, to be done by this process, by itself or in a pack of `size` runs."""
    config = folder.config()
    planned, machine, found = planned_from_disk(config)
    if planned.identity != config.get("identity"):
        raise RecordsError(
            f"{folder.path / 'run.yaml'} describes another run than its identity says: a plug-in's fields or a file that "
            "it names has changed since the run was planned; start the sweep again"
        )
    if halvings := failures.halvings(folder.notes()):
        machine = machine.model_copy(update={"halvings": halvings})
        log.warning("memory ran out before: images in a pass halved %d times", halvings)
    # The same number wherever a run is done: it decides the order of sums, and so the last bits of every number.
    torch.set_num_threads(min(int(config.get("cpus", 1)), threads or sys.maxsize))
    code = provenance.code_hash(found.files(planned.identity))
    here = environment.write(
        folder.path, {"code": code, "sweep_command": config.get("command"), "pack": size, "compile": machine.compile}
    )
    log.info("start of %s on %s, commit %s", folder.path.name, here["hostname"], here["commit"])
    if config.get("code") not in (None, provenance.code_hash()):
        log.warning("the code has changed since the sweep planned this run")
    return planned, machine, found


def _kind(error: Exception) -> str:
    for one in storage.chain(error):  # a hook that fails is told by an error of its own, raised from the first
        for kind, classes in FAILURE_KINDS:
            if isinstance(one, classes):
                return kind
    text = str(error).lower()  # the CPU allocator has no class of its own
    memory = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    return "out_of_memory" if any(words in text for words in memory) else "error"


class _Quiet(logging.FileHandler):
    """A log that a full disk does not stop."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: whoever writes the run's own files hears of the disk soon enough."""


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Everything logged or warned in this process goes to `path` as well."""
    root, handler = logging.getLogger(), _Quiet(path)
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
    """The command line. Exit codes: 0 all done, 1 some failed, 2 no such folder, 3 asked to leave."""
    parser = argparse.ArgumentParser(
        prog="python -m fedbench.jobs.job",
        description="Bring planned runs to their end in this process.",
        epilog="example: python -m fedbench.jobs.job results fedvpt-cifar100-dirichlet-s0-1a2b3c4d",
    )
    parser.add_argument("results", type=Path, help="results folder")
    parser.add_argument("names", nargs="*", metavar="NAME", help="folder names of runs in it; none: read from a keeper")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    spare, threads, names = [], None, given.names
    kept = not names
    if kept:  # a keeper's child: thousands of names do not fit a command line
        asked = json.load(sys.stdin)
        names, spare, threads = asked["names"], asked["spare"], asked["threads"]
    elif missing := [name for name in names if not (given.results / name).is_dir()]:
        parser.error(f"no such run in {given.results}: {', '.join(missing)}")
    # Slurm signals all processes of a job, not only the keeper.
    before = {n: signal.signal(n, leaving.ask) for n in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        run_job(given.results, names, spare, threads)
    except Stopped:
        return LEFT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if kept or all(RunFolder(given.results / name).status == "done" for name in names) else 1


if __name__ == "__main__":
    raise SystemExit(main())
