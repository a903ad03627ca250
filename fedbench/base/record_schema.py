"""The schema of a record: one evaluated round of a run. Writers, readers, tests and the docs follow these typed fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints


def described(meaning: str, execution: bool = False) -> Any:
    """A field with its meaning; ``execution``: it may differ between two executions of the same run."""
    return dataclasses.field(metadata={"meaning": meaning, "execution": execution})


@dataclass(frozen=True)
class RunFacts:
    """Facts that every record of a run repeats, so that each record is complete by itself."""

    run: str = described("name of the run's folder")
    key: str = described("8 hex digits of the run's identity")
    method: str = described("name of the method plug-in")
    label: str = described("name of the method in tables")
    family: str = described("family of the method")
    reference: bool = described("whether the method is an upper or lower reference")
    dataset: str = described("dataset with the fields that differ from their defaults")
    partition: str = described("partitioner, likewise")
    aggregation: str = described("aggregation, likewise")
    backbone: str = described("backbone and image size, name@pixels")
    seed: int = described("the run's seed")
    rounds: int = described("number of rounds of the run")
    trained_parameters: int = described("numbers that one client trains")
    config_hash: str = described("16 hex digits of the run's identity")
    partition_hash: str = described("16 hex digits of every client's train, validation and test samples")
    data_hash: str = described("16 hex digits of images and labels")
    backbone_hash: str = described("16 hex digits of the backbone's weights")
    chunk_images: int = described("images in one pass of the backbone", execution=True)
    cohort_hash: str = described("16 hex digits of the cohorts of all rounds")
    commit: str | None = described("git commit of the code, with + if files differed from it", execution=True)
    code: str = described("hashes of the core's and the plug-ins' source", execution=True)


@dataclass(frozen=True)
class TestMetrics:
    """Accuracy on test data, as fractions; absent in trials of a tuning, which never read test data."""

    __test__ = False  # not a test class

    mean_accuracy: float = described("mean over clients that train, each client counted once")
    worst_accuracy: float = described("lowest accuracy of a client that trains")
    p10_accuracy: float = described("10th percentile over clients that train")
    bottom_decile_accuracy: float = described("mean of the worst tenth of the clients that train, at least one")
    std_accuracy: float = described("population standard deviation over clients that train")
    pooled_accuracy: float = described("accuracy over all test samples of clients that train, pooled")
    held_out_mean_accuracy: float | None = described("mean over held-out clients; null if there are none")
    held_out_worst_accuracy: float | None = described("lowest accuracy of a held-out client; null if there are none")
    global_accuracy: float | None = described(
        "accuracy of the server's model on the global test set; null if clients have models of their own"
    )


@dataclass(frozen=True)
class ValidationMetrics:
    """Accuracy on validation data, by which tuning selects."""

    val_mean_accuracy: float | None = described("mean over clients that train; null without validation samples")


@dataclass(frozen=True)
class RoundCosts:
    """The costs of the evaluated round."""

    train_loss: float | None = described(
        "mean training loss over the cohort, weighted by samples; null if none or not finite"
    )
    bytes_up: int = described("bytes that the cohort sent to the server in this round")
    bytes_down: int = described("bytes that the server sent to the cohort in this round")
    multiply_adds: int = described(
        "multiply-adds of the cohort in this round: local training, and new clients' features"
    )


@dataclass(frozen=True)
class TotalCosts:
    """The costs of all rounds so far."""

    total_bytes_up: int = described("bytes up, all rounds so far")
    total_bytes_down: int = described("bytes down, all rounds so far")
    total_multiply_adds: int = described("multiply-adds of clients, all rounds so far")


@dataclass(frozen=True)
class Measured:
    """Measured time and memory, over all executions of an interrupted run together."""

    seconds: float = described("wall-clock seconds of the run so far", execution=True)
    samples_per_second: float = described("training images per second, evaluation included", execution=True)
    peak_memory_bytes: int = described("peak memory of the process, or of the GPU", execution=True)


@dataclass(frozen=True)
class Record:
    """One evaluated round."""

    facts: RunFacts
    round: int
    test: TestMetrics | None
    validation: ValidationMetrics
    costs: RoundCosts
    totals: TotalCosts
    measured: Measured
    more: Mapping[str, float | None] = dataclasses.field(default_factory=dict)  # columns that a plug-in measures

    def as_json(self) -> dict[str, Any]:
        """The record as one flat mapping, as records.jsonl holds it."""
        flat: dict[str, Any] = {**vars(self.facts), "round": self.round}
        for part in (self.test, self.validation, self.costs, self.totals, self.measured):
            flat |= vars(part) if part is not None else {}
        return flat | {name: _or_none(value) for name, value in self.more.items()}


def _or_none(value: float | None) -> float | None:
    """`value`, or None if it is not finite, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


INFERENCE = "inference_multiply_adds"  # metadata of clients.parquet: multiply-adds of classifying one image

PARTS = (RunFacts, TestMetrics, ValidationMetrics, RoundCosts, TotalCosts, Measured)


@dataclass(frozen=True)
class Column:
    """A column of records: its name, type and meaning, the part it belongs to, and whether it may be absent."""

    name: str
    type: Any
    meaning: str
    part: type
    execution: bool

    @property
    def type_name(self) -> str:
        """The type as JSON calls it, such as ``number or null``."""
        kinds = {str: "text", bool: "true or false", int: "integer", float: "number", type(None): "null"}
        return " or ".join(kinds[kind] for kind in get_args(self.type) or (self.type,))


def columns() -> Mapping[str, Column]:
    """Every column of a record by name, in order."""
    by_name = {}
    for part in PARTS:
        hints = get_type_hints(part)
        for field in dataclasses.fields(part):
            meta = field.metadata
            by_name[field.name] = Column(field.name, hints[field.name], meta["meaning"], part, meta["execution"])
        if part is RunFacts:
            by_name["round"] = Column("round", int, "round after which the evaluation was made, from 1", Record, False)
    return by_name


# Columns that may differ between two executions of the same run; all others are equal on one kind of machine.
EXECUTION = tuple(name for name, column in columns().items() if column.execution)
