"""Decides which runs of a sweep start now, writes their folders, and opens damaged runs again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedbench.base import lease, provenance
from fedbench.base.records import RunFolder
from fedbench.jobs import failures, watch
from fedbench.plan.config import PlannedRun, Sweep
from fedbench.plan.identity import pack_key


def plan(
    sweep: Sweep, results: Path, retry_failed: bool, command: str, warn: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write the folders of the runs to do, and return their names; runs with failed attempts come last.

    Calls `warn` with a sentence for each file that is written again. Raises RecordsError, before anything is written, if a
    folder holds a run of another config.
    """
    folders = {planned.name: RunFolder(results / planned.name) for planned in sweep.runs}
    odd = {
        planned.name: problem
        for planned in sweep.runs
        if folders[planned.name].files() and (problem := folders[planned.name].check_identity(planned.identity))
    }

    def write(planned: PlannedRun) -> None:
        folders[planned.name].plan({**sweep.on_disk(planned), "command": command, "code": provenance.code_hash()})

    names = []
    for planned, view in zip(sweep.runs, watch.Observer(results, sweep.runs).look(), strict=True):
        if planned.name in odd:
            warn(f"{odd[planned.name]}; it is written again")
            write(planned)
        for sentence in folders[planned.name].mend():
            warn(sentence)
        if _starts(folders[planned.name], view, retry_failed):
            write(planned)
            names.append(planned.name)
    if sweep.machine.pack:  # runs that train together are neighbours, so that each worker gets whole packs
        keys = {planned.name: pack_key(planned.identity) for planned in sweep.runs}
        first = {keys[name]: i for i, name in reversed(list(enumerate(names)))}
        names.sort(key=lambda name: first[keys[name]])
    return sorted(names, key=lambda name: len(folders[name].notes()))


def _starts(folder: RunFolder, view: watch.View, retry_failed: bool) -> bool:
    """Whether a run starts now. Notes what is known of its last attempt."""
    if view.state == "missing":
        return True
    if view.state != "failed":
        return False
    if view.kind == "damaged":
        folder.reopen()
    if (folder.path / "failed.json").exists():
        if not retry_failed:
            return False
        folder.note(kind=failures.RETRY, reason="asked for")
        folder.clear_failure()
    elif not _note_end(folder, view) and not retry_failed:
        folder.fail(view.kind, view.reason)
        return False
    return True


def _note_end(folder: RunFolder, view: watch.View) -> bool:
    """Note how the last attempt ended, unless its process did that or had not started. Returns whether the run may continue."""
    if view.kind == "damaged":
        return failures.note(folder, view.kind, view.reason)
    owner = lease.last_owner(folder.path)
    if owner is None or failures.is_noted(folder, owner):
        return True
    return failures.note(folder, view.kind, view.reason, pid=owner.pid, started=owner.started)
