"""The kinds of failures that end an attempt at a run, and how many more attempts each kind allows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedbench.base.processes import Owner
from fedbench.base.records import RunFolder

# Exit codes of a worker, beside 0 and 1.
EXIT_LEFT = 3  # it was asked to stop before its runs had ended
EXIT_BROKEN_ACCELERATOR = 4  # its accelerator can do nothing more in this process; another process can

# {kind: further attempts}, as long as none of them completes a round. Faults of the machine allow many attempts, since they
# pass. Faults that would only repeat themselves allow none.
MORE_ATTEMPTS: dict[str, int] = {
    "diverged": 0,  # training produced numbers that are not finite: every attempt ends the same way
    "data": 0,  # a dataset or a split that cannot be made
    "config": 0,  # a plug-in, backbone or run.yaml that cannot be used
    "error": 0,  # an exception of a plug-in or of the core; the log has the traceback
    "out_of_memory": 4,  # each attempt with half the images in a pass
    "crashed": 2,  # the process crashed (SIGSEGV, SIGABRT, ...), or its accelerator failed
    "killed": 20,  # the process was killed from outside
    "timeout": 20,  # the job reached its time limit
    "preempted": 20,  # the scheduler gave the job's node to another job
    "node_failure": 20,  # the machine failed
    "cancelled": 20,  # the job was cancelled by hand
    "storage": 20,  # the results' disk was full or away for longer than storage.PATIENCE_SECONDS
    "damaged": 20,  # a file of the run does not hold what the run wrote
    "lost": 20,  # it ended for an unknown reason
}
RETRY = "retry"  # a note that the user asked for another attempt: counting starts again


def counted(notes: list[dict[str, Any]]) -> Counter[str]:
    """How often each kind has ended an attempt since the user last asked for another one."""
    kinds = [str(note.get("kind")) for note in notes]
    last = max((i for i, kind in enumerate(kinds) if kind == RETRY), default=-1)
    return Counter(kinds[last + 1 :])


def without_progress(notes: list[dict[str, Any]]) -> Counter[str]:
    """As `counted`, since the run last completed a round: a long run on a busy cluster may be interrupted many times."""
    start, furthest = 0, 0
    for i, note in enumerate(notes):
        if note.get("round", 0) > furthest:
            start, furthest = i, note["round"]
    return counted(notes[start:])


def note(folder: RunFolder, kind: str, reason: str, **more: Any) -> bool:
    """Note how an attempt ended. Returns whether its kind allows another attempt."""
    folder.note(kind=kind, reason=reason, **{"round": folder.progress().get("round", 0)} | more)
    return without_progress(folder.notes())[kind] <= MORE_ATTEMPTS[kind]


def is_noted(folder: RunFolder, owner: Owner) -> bool:
    """Whether the run's notes already contain the end of a process."""
    return any((note.get("pid"), note.get("started")) == (owner.pid, owner.started) for note in folder.notes())


def halvings(notes: list[dict[str, Any]]) -> int:
    """How often to halve the number of images in a pass: once for each time that memory has ever run out."""
    return min(16, sum(1 for note in notes if note.get("kind") == "out_of_memory"))
