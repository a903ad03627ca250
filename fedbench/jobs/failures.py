"""What can end a run before it is done, and how often each of these is followed by another try without being asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedbench.base.records import RunFolder

# kind: tries after the first that may end without a round more. What is the machine's fault is tried again for long; what
# would only fail again is not.
AGAIN: dict[str, int] = {
    "diverged": 0,  # numbers left the finite ones: every try ends the same way
    "data": 0,  # a dataset or a split that cannot be made
    "config": 0,  # a plug-in, backbone or run.yaml that cannot be used
    "error": 0,  # an exception of a plug-in or of the core; the log has the traceback
    "out_of_memory": 4,  # each try with half the images in a pass
    "crashed": 2,  # the process died of its own fault (SIGSEGV, SIGABRT, ...)
    "killed": 20,  # the process was killed from outside
    "timeout": 20,  # the job came to its time limit
    "preempted": 20,  # the job had to make room
    "node_failure": 20,  # the machine died
    "cancelled": 20,  # the job was cancelled by hand
    "storage": 20,  # the results' disk was full or away for longer than storage.PATIENCE_SECONDS
    "lost": 20,  # ended, and nobody says how
}
RETRY = "retry"  # a note that somebody asked for another try: counting begins anew


def counted(notes: list[dict[str, Any]]) -> Counter[str]:
    """How often each kind has ended the run since somebody last asked for another try."""
    kinds = [str(note.get("kind")) for note in notes]
    last = max((i for i, kind in enumerate(kinds) if kind == RETRY), default=-1)
    return Counter(kinds[last + 1 :])


def in_vain(notes: list[dict[str, Any]]) -> Counter[str]:
    """The same, since the run last got further: a long run on a busy cluster may be interrupted for ever so often."""
    start, furthest = 0, 0
    for i, note in enumerate(notes):
        if note.get("round", 0) > furthest:
            start, furthest = i, note["round"]
    return counted(notes[start:])


def note(folder: RunFolder, kind: str, reason: str, **more: Any) -> bool:
    """Write down that a try ended; whether the rule of `kind` allows another."""
    folder.note(kind=kind, reason=reason, **{"round": folder.progress().get("round", 0)} | more)
    return in_vain(folder.notes())[kind] <= AGAIN[kind]


def halvings(notes: list[dict[str, Any]]) -> int:
    """How often the images in a pass are to be halved: once for each time that memory ran out, ever."""
    return min(16, sum(1 for note in notes if note.get("kind") == "out_of_memory"))
