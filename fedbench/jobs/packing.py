"""Finds the runs of a job that can be trained together, and attempts to do so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedbench.base import lease
from fedbench.base.records import RecordsError, RunFolder
from fedbench.jobs import attempt
from fedbench.jobs.stop_request import stop_request
from fedbench.plan.identity import pack_key, training_key
from fedbench.run import pack
from fedbench.run.meter import SharedClock
from fedbench.run.pack import Member
from fedbench.run.simulation import Stopped, begin

log = logging.getLogger("fedbench")

INTERRUPTIONS = {"preempted", "timeout", "cancelled", "node_failure"}  # ends that are not the fault of a run


class PackGroups:
    """Groups the runs of a job that can be trained together, by their configs. Each run is in one group."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._keys: dict[str, str | None] = {}
        self._grouped: set[str] = set()

    def group_at(self, names: Sequence[str], position: int) -> list[str]:
        """The run ``names[position]`` and the later runs with its pack key; [] if it was grouped before or must run alone."""
        if position >= len(names) or names[position] in self._grouped:
            return []
        if (key := self._key(names[position])) is None:
            return []
        group = [name for name in names[position:] if self._key(name) == key]
        self._grouped.update(group)
        return group

    def _key(self, name: str) -> str | None:
        if name not in self._keys:
            folder = RunFolder(self.results / name)
            try:
                config = folder.config()
                self._keys[name] = None if _goes_alone(folder, config) else group_key(config)
            except (RecordsError, OSError, KeyError, TypeError, AttributeError):  # its own attempt reports it
                self._keys[name] = None
        return self._keys[name]


def group_key(config: Mapping[str, Any]) -> str | None:
    """The key that the config of a run shares with those of runs that go with it; None if nothing may be shared."""
    machine, identity = config["machine"], config["identity"]
    if machine["pack"]:
        return pack_key(identity)
    return training_key(identity) if machine["shortcuts"] else None


def _goes_alone(folder: RunFolder, config: Mapping[str, Any]) -> bool:
    """Whether a run must run alone: trackers follow one run at a time, and a run that failed may fail again."""
    failures = {note["kind"] for note in folder.notes()} - INTERRUPTIONS
    return bool(config["machine"]["track"] or failures or folder.status in ("done", "failed"))


def train_together(folders: Sequence[RunFolder], threads: int | None) -> None:
    """Train runs together as far as possible. Each run's own attempts deal with whatever fails here.

    Raises Stopped if the process was asked to stop, BrokenAccelerator if its accelerator is unusable.
    """
    if stop_request.received:
        raise Stopped(f"{len(folders)} runs: not started")
    broken: BaseException | None = None
    with ExitStack() as stack:
        members: list[tuple[RunFolder, lease.Lease, Member]] = []
        for folder in folders:
            try:
                if (joined := stack.enter_context(_member(folder, threads, len(folders)))) is not None:
                    members.append((folder, *joined))
            except Exception as error:  # noqa: BLE001
                log.warning("%s: not packed: %s", folder.path.name, error)
        if len(members) > 1:
            try:
                pack.run_pack([member for _, _, member in members], stack=bool(folders[0].config()["machine"]["pack"]))
            except Exception as error:
                broken = error if attempt.is_broken_accelerator(error) else None
                log.exception("%d runs cannot be trained together; each continues alone", len(members))
        errors = [member.error for _, _, member in members if member.error is not None]
        broken = broken or next((error for error in errors if attempt.is_broken_accelerator(error)), None)
        for folder, held, member in members:
            _leave_pack(folder, held, member, broken)
    del members
    if broken is not None:
        raise attempt.BrokenAccelerator(f"{len(folders)} runs trained together: {broken}") from broken
    attempt.free_memory()
    if any(isinstance(error, Stopped) for error in errors):
        raise Stopped(f"{len(folders)} runs trained together")


def _leave_pack(folder: RunFolder, held: lease.Lease, member: Member, broken: BaseException | None) -> None:
    """Mark a run of the pack as done if all its rounds are done; else its own attempts continue it.

    `broken`: the error that made the accelerator unusable, in whichever run.
    """
    with attempt.logging_to(folder.log):
        reason: Exception | None = member.error
        if reason is None and member.state.over:
            try:
                folder.finish(member.state.written())
                held.remove_claims()
            except (OSError, RecordsError) as error:
                reason = error
            else:
                log.info("done")
                return
        if broken is not None:
            attempt.end(folder, "crashed", f"the accelerator of its pack failed: {broken}")
        log.info("leaving the pack after round %d: %s", member.state.rounds_done, reason or "it ended")


@contextmanager
def _member(folder: RunFolder, threads: int | None, size: int) -> Iterator[tuple[lease.Lease, Member] | None]:
    """The run as a member of a pack, with its lease; None if it cannot be one. Raises what `begin` raises."""
    with lease.acquire(folder.path) as held:
        if held is None or held.abandoned_by is not None or folder.status in ("done", "failed"):
            yield None
            return
        with attempt.logging_to(folder.log):
            clock = SharedClock()
            with clock.counting():
                ready = attempt.prepare(folder, threads, size)
                state = begin(ready.planned, ready.machine, ready.plugins, folder, clock, ready.halvings)
        yield held, Member(state, clock, attempt.must_leave(held), lambda: attempt.logging_to(folder.log))
