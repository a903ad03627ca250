"""Does a published run again and compares its records with the published ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedbench.base import run_files
from fedbench.base.record_schema import EXECUTION, TestMetrics, columns
from fedbench.base.records import RunFolder
from fedbench.jobs.attempt import bring_to_end
from fedbench.plan.config import Cluster, Machine, PlannedRun, Sweep
from fedbench.plan.plugins import Plugins

# Keys of env.json that must be equal for equal bits.
SAME_BITS = ("python", "torch", "timm", "numpy", "device", "processor", "threads", "code", "pack", "compile")
POINTS = 1.0  # tolerance in points (hundredths of a share) for means over clients or samples
TAIL_FACTOR = 5.0  # the tolerance of the metrics below is larger, since they depend on few clients
TAIL = ("worst_accuracy", "p10_accuracy", "bottom_decile_accuracy", "std_accuracy", "held_out_worst_accuracy")
LOSS_TOLERANCE = 0.05  # relative, of the training loss
# Accuracies and their spread, as fractions; every other number but the training loss must be equal.
SHARES = (*(field.name for field in dataclasses.fields(TestMetrics)), "val_mean_accuracy")

Verdict = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class Verified:
    """The outcome of a run. exact: whether equal bits were expected; said: the largest difference, or the reason."""

    name: str
    verdict: Verdict
    exact: bool
    said: str


def rerun(planned: PlannedRun, plugins: Plugins, machine: Machine, threads: int, results: Path) -> RunFolder:
    """Do a run below `results` to its end, on as many threads as the published run had."""
    sweep = Sweep("verify", (planned,), machine, Cluster(cpus=threads), plugins)
    folder = RunFolder(results / planned.name)
    folder.plan(sweep.on_disk(planned))
    bring_to_end(folder, None)
    return folder


def compare(
    name: str, published: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any], folder: RunFolder, points: float
) -> Verified:
    """Compare the records of a finished rerun with the published ones; a rerun that failed is skipped or fails.

    On the same versions, processor, threads and data every column must be equal to the bit, else within the tolerances.
    Data differ (`data_hash`) if another version of a library draws or decodes the images a little differently.
    """
    if folder.status != "done":
        failure = folder.failure()
        verdict: Verdict = "skipped" if failure.get("kind") == "data" else "fail"
        return Verified(name, verdict, False, f"its rerun failed: {failure.get('reason', folder.status)}")
    here = folder.environment()
    records = folder.records()
    data = [{record["data_hash"] for record in rows if "data_hash" in record} for rows in (published, records)]
    same_data = data[0] == data[1]
    exact = same_data and all(key in provenance and provenance[key] == here.get(key) for key in SAME_BITS)
    if [record["round"] for record in records] != [record["round"] for record in published]:
        return Verified(name, "fail", exact, "its rerun evaluated other rounds")
    largest, fault = 0.0, ""
    where = "no difference"
    for before, now in zip(published, records, strict=True):
        for column in columns():
            if column in EXECUTION or column in ("label", "data_hash"):
                continue
            distance, allowed = _distance(column, before.get(column), now.get(column), points)
            allowed = 0.0 if exact else allowed
            text = f"{column} in round {before['round']}: {before.get(column)} published, {now.get(column)} here"
            if distance > allowed and not fault:
                fault = text
            if column in SHARES and math.isfinite(distance) and distance > largest:
                largest, where = distance, f"largest difference {100 * distance:.3g} points, {text}"
    said = (
        [fault] * bool(fault)
        + [where]
        + ["the images here differ from the published ones (data_hash)"] * (not same_data)
    )
    return Verified(name, "fail" if fault else "pass", exact, "; ".join(said))


def _distance(column: str, before: Any, now: Any, points: float) -> tuple[float, float]:
    """(difference of two values of a column, the largest that is tolerated); infinite for values that are no numbers."""
    if before == now:
        return 0.0, 0.0
    if not (_is_number(before) and _is_number(now)):
        return math.inf, 0.0
    if column in SHARES:
        # an accuracy of few samples has coarse steps, and sums in another order add the last digits
        return abs(before - now), points / 100 * (TAIL_FACTOR if column in TAIL else 1.0) + 1e-12
    if column == "train_loss":
        return abs(before - now), LOSS_TOLERANCE * max(abs(before), abs(now))
    return abs(before - now), 0.0


def _is_number(value: Any) -> bool:
    return run_files.NUMBER.fits(value)
