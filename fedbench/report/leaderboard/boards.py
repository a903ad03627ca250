"""Tables of files of published runs: one for each experiment.

Runs are compared if they share the data, split, backbone, clients and budget. Each such experiment has its own table, tests and
answer, as if it were a report of its own. Trials of a tuning are no rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedbench.base.naming import key, words
from fedbench.report.answer import OVERALL, Answer, Control
from fedbench.report.content import Content, ReportOptions
from fedbench.report.evidence import gather
from fedbench.report.published_runs import PublishedRun, PublishedRunsError, read, unpack
from fedbench.report.selection import ReportError
from fedbench.report.short_names import JOINT, short_settings
from fedbench.report.tables.grid import scaled

# Keys of a run that compared runs share. Of `local`, the learning rate and the optimizer may differ.
EXPERIMENT = ("dataset", "partition", "backbone", "clients", "rounds", "precision")
LOCAL = ("epochs", "batch_size", "augment")
REDRAWN = re.compile(r"(?:min_train|redraws)=\d+(?:, )?")
# Columns of the table: accuracies in percent, then costs of a run.
ACCURACIES = ("mean_accuracy", "worst_accuracy", "bottom_decile_accuracy", "held_out_mean_accuracy")
COSTS = ("trained_parameters", "sent", "total_multiply_adds", "inference_multiply_adds")


@dataclass(frozen=True)
class BoardCell:
    """A cell: its text, the number by which it sorts (None: below all others), and its mark."""

    text: str
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class BoardRow:
    """A method. source: names of the files that its runs come from, without .parquet; tuned: whether values were searched."""

    label: str
    reference: bool
    cells: tuple[BoardCell, ...]
    seeds: int
    tuned: bool
    source: str


@dataclass(frozen=True)
class Board:
    """The table of an experiment, with its answer and controls. title, setting: its short name, and its full text."""

    title: str
    setting: str
    details: str
    seeds: int
    answer: Answer | None
    controls: Sequence[Control]
    rows: Sequence[BoardRow]
    notes: Sequence[str]


@dataclass(frozen=True)
class Source:
    """A published file: its name, the checksum of its content, its runs that are no trials, and the code that made them."""

    name: str
    checksum: str
    runs: int
    code: str


def checksum(path: Path) -> str:
    """16 hex digits of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_boards(paths: Sequence[Path]) -> tuple[list[Board], list[Source]]:
    """The tables of all runs in `paths`, and the files. A run that several files hold is taken from the first.

    Raises ReportError if a file cannot be used, or if there are no runs.
    """
    runs: dict[str, tuple[PublishedRun, str]] = {}
    sources = []
    for path in paths:
        try:
            of_file = [run for run in read(path) if "trial_of" not in run.tuning]
        except PublishedRunsError as error:
            raise ReportError(str(error)) from error
        commits = sorted({str(run.provenance.get("commit", "unknown")) for run in of_file})
        sources.append(Source(path.name, checksum(path), len(of_file), ", ".join(commits)))
        for run in of_file:
            runs.setdefault(run.name, (run, path.name))
    experiments: dict[str, list[tuple[PublishedRun, str]]] = {}
    for run, file in runs.values():
        experiments.setdefault(key(_experiment(run.identity)), []).append((run, file))
    if not experiments:
        raise ReportError("the files hold no runs other than trials; publish a sweep whose runs are done")
    boards = [_board(members) for members in experiments.values()]
    titles = _titles({board.setting for board in boards})
    boards = [
        dataclasses.replace(board, title=titles[board.setting], setting=_commas(board.setting)) for board in boards
    ]
    return sorted(boards, key=lambda board: (board.title, board.details)), sources


def _titles(settings: Collection[str]) -> dict[str, str]:
    """{setting: its short name}, without how often a split may be drawn again unless that alone tells settings apart."""
    without = {setting: REDRAWN.sub("", setting).replace(", )", ")") for setting in sorted(settings)}
    if len(set(without.values())) < len(without):
        without = {setting: setting for setting in without}
    short = short_settings(list(without.values()))
    return {setting: _commas(short[text]) for setting, text in without.items()}


def _commas(setting: str) -> str:
    return setting.replace(JOINT, ", ")


def _experiment(identity: Mapping[str, Any]) -> dict[str, Any]:
    local = identity.get("local")
    shared = {name: local.get(name) for name in LOCAL} if isinstance(local, dict) else local
    return {name: identity.get(name) for name in EXPERIMENT} | {"local": shared}


def _board(members: Sequence[tuple[PublishedRun, str]]) -> Board:
    """The board of the runs of one experiment, each with the name of its file."""
    with tempfile.TemporaryDirectory(prefix="fedbench-leaderboard-") as name:
        for run, _ in sorted(members, key=lambda member: member[0].name):
            unpack(run, Path(name))
        evidence = gather([], Path(name))
    content = Content(evidence, ReportOptions())
    identity = members[0][0].identity
    files = {run.name: file for run, file in members}
    rows = [_row(str(label), of_label, content.table, files) for label, of_label in evidence.runs.groupby("label")]
    rows.sort(key=lambda row: (-(row.cells[0].value if row.cells[0].value is not None else -math.inf), row.label))
    clients, local = identity["clients"], identity["local"]
    details = (
        f"{identity['rounds']} rounds of {clients['per_round']} of {clients['number']} clients, {local['epochs']} local "
        f"epoch{'s' * (local['epochs'] != 1)}, batches of {local['batch_size']}; backbone {words(identity['backbone'])}"
    )
    return Board(
        title="",
        setting=str(evidence.runs["setting_text"].iloc[0]),
        details=details,
        seeds=int(evidence.runs["seed"].nunique()),
        answer=next((each for each in content.answers if each.setting != OVERALL), None),
        controls=content.controls,
        rows=rows,
        notes=content.alarms,
    )


def _row(label: str, runs: pd.DataFrame, table: pd.DataFrame, files: Mapping[str, str]) -> BoardRow:
    of_label = table[table["label"] == label].set_index("metric")
    cells = [_accuracy(of_label.loc[name]) for name in ACCURACIES]
    means = of_label["mean"].astype(float)
    costs = dict(means) | {"sent": float(means["total_bytes_up"] + means["total_bytes_down"])}
    cells += [_cost(costs[name], "B" if name == "sent" else "") for name in COSTS]
    return BoardRow(
        label=label,
        reference=bool(runs["reference"].iloc[0]),
        cells=tuple(cells),
        seeds=int(runs["seed"].nunique()),
        tuned=any(json.loads(text).get("values") for text in runs["tuning"]),
        source=", ".join(dict.fromkeys(Path(files[str(run)]).stem for run in runs["run"])),
    )


def _accuracy(row: Any) -> BoardCell:
    mean, std, seeds, of = float(row["mean"]), float(row["std"]), int(row["n"]), int(row["of"])
    if not math.isfinite(mean):
        return BoardCell("–")
    text = f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if math.isfinite(std) else "")
    return BoardCell(text + (f" ({seeds}/{of})" if seeds < of else ""), mean, str(row["mark"]))


def _cost(value: float, unit: str) -> BoardCell:
    return BoardCell(f"{scaled(value)}{unit}".strip(), value) if math.isfinite(value) else BoardCell("–")
