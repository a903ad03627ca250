"""What can end an attempt at a run before the run is done, and how many more attempts each of these kinds allows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedbench.base.processes import Owner
from fedbench.base.records import RunFolder

# Exit codes of a worker, beside 0 and 1.
EXIT_LEFT = 3  # it was asked to stop before its runs had ended
EXIT_BROKEN_ACCELERATOR = 4  # its accelerator can do nothing more in this process; another process can

# kind: further attempts, as long as none of them completes a round. A fault of the machine allows many, since it passes. A
# fault that would only repeat itself allows none.
MORE_ATTEMPTS: dict[str, int] = {
    "diverged": 0,  # training produced numbers that are not finite: every attempt ends the same way
    "data": 0,  # a dataset or a split that cannot be made
    "config": 0,  # a plug-in, backbone or run.yaml that cannot be used
    "error": 0,  # an exception of a plug-in or of the core; the log has the traceback
    "out_of_memory": 4,  # each attempt with half the images in a pass
    "crashed": 2,  # the process died of its own fault (SIGSEGV, SIGABRT, ...), or its accelerator did
    "killed": 20,  # the process was killed from outside
    "timeout": 20,  # the job reached its time limit
    "preempted": 20,  # the job had to make room
    "node_failure": 20,  # the machine died
    "cancelled": 20,  # the job was cancelled by hand
    "storage": 20,  # the results' disk was full or away for longer than storage.PATIENCE_SECONDS
    "damaged": 20,  # a file of the run does not hold what the run wrote
    "lost": 20,  # it ended, and nobody says how
}
RETRY = "retry"  # a note that a person asked for another attempt: counting starts again


def counted(notes: list[dict[str, Any]]) -> Counter[str]:
    """How often each kind has ended an attempt since a person last asked for another one."""
    kinds = [str(note.get("kind")) for note in notes]
    last = max((i for i, kind in enumerate(kinds) if kind == RETRY), default=-1)
    return Counter(kinds[last + 1 :])


def without_progress(notes: list[dict[str, Any]]) -> Counter[str]:
    """The same since the run last completed a round: a long run on a busy cluster may be interrupted any number of times."""
    start, furthest = 0, 0
    for i, note in enumerate(notes):
        if note.get("round", 0) > furthest:
            start, furthest = i, note["round"]
    return counted(notes[start:])


def note(folder: RunFolder, kind: str, reason: str, **more: Any) -> bool:
    """Note how an attempt ended; returns whether its kind allows another one."""
    folder.note(kind=kind, reason=reason, **{"round": folder.progress().get("round", 0)} | more)
    return without_progress(folder.notes())[kind] <= MORE_ATTEMPTS[kind]


def is_noted(folder: RunFolder, owner: Owner) -> bool:
    """Whether the end of a process is among the notes of its run."""
    return any((note.get("pid"), note.get("started")) == (owner.pid, owner.started) for note in folder.notes())


def halvings(notes: list[dict[str, Any]]) -> int:
    """How often the images in a pass are to be halved: once for each time that memory ran out, ever."""
    return min(16, sum(1 for note in notes if note.get("kind") == "out_of_memory"))
