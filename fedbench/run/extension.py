"""A run with more rounds continues a finished shorter run of the same results folder, instead of training its rounds again.

The shorter run must be the same run in everything but `rounds` and `evaluate_every`, and of the same code, and must hold every
record that the longer run needs. Nothing may depend on the number of rounds: no schedule of the learning rate, and no value
that a method or an aggregation derives from `Task.rounds`. Then the numbers are those of one run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fedbench.base.records import RecordsError, RunFolder, due_rounds, record_line, rounds_in_words
from fedbench.method import Param
from fedbench.plan.config import PlannedRun
from fedbench.plan.schedule import depends_on_rounds
from fedbench.run import checkpoint, resume
from fedbench.run.checkpoint import Checkpoint
from fedbench.run.experiment import Experiment
from fedbench.run.server import parameters

log = logging.getLogger("fedbench")

MAY_DIFFER = ("rounds", "evaluate_every")  # keys of the identity


def continue_shorter_run(experiment: Experiment, planned: PlannedRun, folder: RunFolder) -> Checkpoint | None:
    """The last checkpoint of the longest shorter run that `planned` can continue; None if there is none.

    Writes the records and the checkpoint to `folder`, which must hold no records. Logs why a run is not continued.
    """
    for shorter, identity in sorted(_shorter_runs(planned, folder), key=lambda other: -int(other[1]["rounds"])):
        problem, saved, records = _usable(experiment, shorter, identity)
        if saved is None:
            log.info("%s is not continued: %s", shorter.path.name, problem)
            continue
        lines = []
        for record in records:
            record = record | vars(experiment.facts)
            folder.append(record)
            lines.append(record_line(record))
        files = {resume.RECORDS: hashlib.sha256(b"".join(lines)).hexdigest()}
        checkpoint.save(folder.path, saved.state, saved.round, saved.totals, saved.seconds, files)
        log.info("continues %s after its round %d", shorter.path.name, saved.round)
        return saved
    return None


def _shorter_runs(planned: PlannedRun, folder: RunFolder) -> Iterator[tuple[RunFolder, Mapping[str, Any]]]:
    """The finished runs beside `folder` that are the same run with fewer rounds, and their identities."""
    expected = _without_rounds(planned.identity)
    for path in folder.path.parent.glob(planned.name.removesuffix(planned.key) + "*"):
        other = RunFolder(path)
        if path == folder.path or other.status != "done":
            continue
        try:
            identity = other.config()["identity"]
        except (RecordsError, OSError):
            continue
        if _without_rounds(identity) == expected and int(identity["rounds"]) < planned.run.rounds:
            yield other, identity


def _without_rounds(identity: Mapping[str, Any]) -> Any:
    return json.loads(
        json.dumps({k: v for k, v in identity.items() if k not in MAY_DIFFER}, default=str, sort_keys=True)
    )


def _usable(
    experiment: Experiment, shorter: RunFolder, identity: Mapping[str, Any]
) -> tuple[str, Checkpoint | None, list[dict[str, Any]]]:
    """(why `shorter` cannot be continued, None, []), or ("", its last checkpoint, the records that are due)."""
    run, rounds = experiment.run, int(identity["rounds"])
    if depends_on_rounds(run.local):
        return f"its learning rates depend on the number of rounds (schedule {run.local.schedule})", None, []
    if names := _that_depend_on_rounds(experiment, rounds):
        return f"{', '.join(names)} depend on the number of rounds", None, []
    if shorter.code_versions() != [experiment.facts.code]:
        return "other code made it", None, []
    due = due_rounds(run.rounds, run.evaluate_every, up_to=rounds)
    records = [record for record in shorter.records() if record["round"] in due]
    if missing := sorted(set(due) - {record["round"] for record in records}):
        return f"it has not evaluated {rounds_in_words(missing)}", None, []
    keys = {name: identity[name] for name in MAY_DIFFER}
    saved = resume.fitting_checkpoint(shorter, run.model_copy(update=keys))
    if saved is None or saved.round != rounds:
        return "its last checkpoint is missing or damaged", None, []
    return "", saved, records


def _that_depend_on_rounds(experiment: Experiment, rounds: int) -> list[str]:
    """The parameters that a run of `rounds` rounds would start with other values of."""
    server, task = experiment.server, dataclasses.replace(experiment.task, rounds=rounds)
    other = parameters(server.method, server.aggregation, task)
    return [
        name
        for name, param in server.spec.items()
        if name not in other or not _equal(param, other[name], task.num_clients)
    ]


def _equal(first: Param, second: Param, clients: int) -> bool:
    """Whether two parameters have the same initial values, for every client."""
    if first.init.shape != second.init.shape or not torch.equal(first.init, second.init):
        return False
    if first.rows is None or second.rows is None:
        return first.rows is second.rows
    everyone = torch.arange(clients).split(256)
    return all(torch.equal(first.rows(part), second.rows(part)) for part in everyone)
