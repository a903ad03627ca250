"""Decides where a run resumes: at the newest checkpoint that fits its records, or at the beginning."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from fedbench.base.records import RunFolder, due_rounds, rounds_in_words
from fedbench.base.run_files import checksum
from fedbench.plan.config import RunConfig
from fedbench.run import checkpoint
from fedbench.run.checkpoint import Checkpoint

log = logging.getLogger("fedbench")

RECORDS, CLIENTS = "records.jsonl", "clients.parquet"


def fitting_checkpoint(folder: RunFolder, run: RunConfig) -> Checkpoint | None:
    """The newest undamaged checkpoint whose rounds are all in the records; None if the run starts from the beginning.

    Logs why a checkpoint does not fit. Raises OSError if the folder is away.
    """
    problems: list[str] = []
    lines = folder.record_lines(problems)
    for problem in problems:
        log.warning("%s", problem)
    for saved in checkpoint.undamaged(folder.path):
        problem = _misfit(saved, lines, folder, run)
        if not problem:
            return saved
        log.warning("the checkpoint after round %d is not used: %s", saved.round, problem)
    if lines or problems:
        log.warning("the run starts from the beginning: no checkpoint fits its records")
    return None


def _misfit(saved: Checkpoint, lines: Sequence[tuple[bytes, dict[str, Any]]], folder: RunFolder, run: RunConfig) -> str:
    """Why a checkpoint does not fit the run's other files; "" if it does."""
    kept = [(line, record["round"]) for line, record in lines if record["round"] <= saved.round]
    recorded = {round_ for _, round_ in kept}
    missing = [round_ for round_ in due_rounds(run.rounds, run.evaluate_every, saved.round) if round_ not in recorded]
    if missing:
        return f"{folder.path / RECORDS} lacks {rounds_in_words(missing)}"
    if (
        RECORDS in saved.files
        and hashlib.sha256(b"".join(line for line, _ in kept)).hexdigest() != saved.files[RECORDS]
    ):
        return f"{folder.path / RECORDS} does not hold what the run wrote"
    return _misfit_of_clients(saved, folder) if saved.round == run.rounds else ""


def _misfit_of_clients(saved: Checkpoint, folder: RunFolder) -> str:
    """As `_misfit`, for the table of clients, which the last round writes."""
    path = folder.path / CLIENTS
    if path not in folder.path.iterdir():  # raises if the disk is away, where exists() returns False
        return f"{path} is missing"
    if CLIENTS in saved.files:
        return "" if checksum(path) == saved.files[CLIENTS] else f"{path} does not hold what the run wrote"
    return "; ".join(folder.unreadable_clients())
