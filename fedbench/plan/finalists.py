"""The last step of a tuning: the best trials are repeated on further seeds, and the values that win there are chosen.

Validation sets are small, and what is best under one seed may not be under the next. So the finalists, trial 0 among them, are
compared by their mean validation accuracy over seeds, and the sweep file's values are kept unless a finalist exceeds them by
more than the standard error of the difference. This is the one-standard-error rule (Breiman et al. 1984, "Classification and
Regression Trees", section 3.4.3) with the sweep file's values in place of the simplest model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbench.base.records import RecordsError, RunFolder
from fedbench.plan.config import PlannedRun

FINALISTS = 3  # trials that are compared on several seeds: the two best and trial 0


@dataclass(frozen=True)
class Trial:
    """One trial on one rung and one seed: its run, the values that it tries, and how it ended."""

    planned: PlannedRun
    values: dict[str, Any]
    folder: Path
    ended: bool
    validation: float | None  # mean validation accuracy of the last round; None: not ended, or diverged

    @property
    def number(self) -> int:
        """The trial's number, from 0; the same on every rung and seed."""
        return int(self.planned.tuning["number"])

    @property
    def order(self) -> tuple[float, int]:
        """A sort key: trials from best to worst, and equal trials by number."""
        return -1.0 if self.validation is None else self.validation, -self.number


@dataclass(frozen=True)
class Finalist:
    """The trials of the same values and full length, one for each seed, in the order of the runs."""

    trials: tuple[Trial, ...]

    @property
    def planned(self) -> PlannedRun:
        """The run on the first seed."""
        return self.trials[0].planned

    @property
    def values(self) -> dict[str, Any]:
        """{dotted path: value}."""
        return self.trials[0].values

    @property
    def number(self) -> int:
        """The trial's number, from 0."""
        return self.trials[0].number

    @property
    def ended(self) -> bool:
        """Whether all of its trials have ended."""
        return all(trial.ended for trial in self.trials)

    @property
    def validation(self) -> float | None:
        """The mean over seeds of the validation accuracies; None if one of the trials diverged or has not ended."""
        known = [trial.validation for trial in self.trials if trial.validation is not None]
        return math.fsum(known) / len(known) if len(known) == len(self.trials) else None

    @property
    def order(self) -> tuple[float, int]:
        """A sort key, as that of trials."""
        return -1.0 if self.validation is None else self.validation, -self.number


def choose(finalists: Sequence[Finalist]) -> Finalist:
    """The finalist whose values are used: trial 0, unless others exceed it by more than the standard error.

    Of those, the best; of equal ones, the first. If trial 0 diverged, or is not among the finalists, the best of all. Raises
    RecordsError if the client accuracies of a trial cannot be read.
    """
    default = next((finalist for finalist in finalists if finalist.number == 0), None)
    best = max(finalists, key=lambda finalist: finalist.order)
    if default is None or default.validation is None:
        return best
    better = [default]
    for finalist in finalists:
        gain = (finalist.validation or 0.0) - default.validation
        if finalist.validation is not None and gain > 0 and gain > standard_error(finalist, default):
            better.append(finalist)
    return max(better, key=lambda finalist: finalist.order)


def standard_error(first: Finalist, second: Finalist) -> float:
    """The standard error of the difference between two finalists' validation accuracies (a fraction, not points).

    It is the larger of two estimates: from the differences under each seed, if there are at least two, and from the differences
    of the clients, which share a split under the same seed. Differences of two or three seeds can be equal by chance.
    """
    pairs = list(zip(first.trials, second.trials, strict=True))
    by_seed = [(a.validation or 0.0) - (b.validation or 0.0) for a, b in pairs]
    of_seeds = float(np.std(by_seed, ddof=1)) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
    variances = []
    for a, b in pairs:
        differences = client_validation(a.folder) - client_validation(b.folder)
        differences = differences[~np.isnan(differences)]
        variances.append(float(np.var(differences, ddof=1)) / len(differences) if len(differences) > 1 else 0.0)
    return max(of_seeds, math.sqrt(math.fsum(variances)) / len(pairs))


def client_validation(folder: Path) -> NDArray[np.float64]:
    """The validation accuracy of each client [clients], NaN for those without validation samples. Raises RecordsError."""
    from pyarrow import parquet  # slow to import, and most commands do not need it

    path = folder / "clients.parquet"
    try:
        table = parquet.ParquetFile(path).read(["client", "val_accuracy"], use_threads=False)
        order = np.argsort(table.column("client").to_numpy())
        accuracies: NDArray[np.float64] = table.column("val_accuracy").to_numpy().astype(np.float64)[order]
    except Exception as error:  # a damaged file makes the parser raise many kinds
        raise RecordsError(f"{path} cannot be read ({' '.join(str(error).split()):.200})") from error
    return accuracies


def outcome(folder: RunFolder) -> tuple[bool, float | None]:
    """(whether the trial has ended by itself, its last validation accuracy). A trial that diverged has ended without accuracy.

    A trial with damaged files has not ended: the sweep does it again. Raises OSError if its folder is away.
    """
    status = folder.status
    if status == "failed":
        return folder.failure().get("kind") == "diverged", None
    if status != "done" or folder.damage():
        return False, None
    records = folder.records()
    value = max(records, key=lambda record: record["round"]).get("val_mean_accuracy") if records else None
    return True, value
