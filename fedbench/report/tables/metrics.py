"""The content of tables: the metrics of a run, the states of a run, and the marks of a cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["share", "bytes", "count", "seconds", "rate"]
Mark = Literal["", "best", "tied"]


@dataclass(frozen=True)
class Metric:
    """A column of the records: its title in tables, its meaning, and whether the largest value is best."""

    name: str
    title: str
    meaning: str
    kind: Kind = "share"
    ranked: bool = False


METRICS = tuple(
    Metric(*fields)
    for fields in (
        ("mean_accuracy", "Mean", "accuracy on a client's own test data, unweighted mean over clients", "share", True),
        ("worst_accuracy", "Worst", "the lowest accuracy of any client", "share", True),
        ("p10_accuracy", "10th pct.", "10th percentile of the clients' accuracies", "share", True),
        ("bottom_decile_accuracy", "Bottom 10 %", "mean accuracy of the worst tenth of the clients", "share", True),
        ("std_accuracy", "Spread", "standard deviation of accuracy over clients (not over seeds)"),
        ("pooled_accuracy", "Pooled", "accuracy over all clients' test samples taken together", "share", True),
        ("global_accuracy", "Global", "accuracy of the global model on the dataset's whole test set", "share", True),
        ("held_out_mean_accuracy", "New, mean", "mean over held-out clients, which never trained", "share", True),
        ("held_out_worst_accuracy", "New, worst", "the lowest accuracy of any held-out client", "share", True),
        ("val_mean_accuracy", "Valid.", "mean over clients of accuracy on validation data (used for selection)"),
        ("train_loss", "Train loss", "mean training loss of the last round's cohort", "rate"),
        ("trained_parameters", "Trained", "parameters that training changes, on one client", "count"),
        ("total_bytes_up", "Up", "bytes sent from clients to server in all rounds", "bytes"),
        ("total_bytes_down", "Down", "bytes sent from server to clients in all rounds", "bytes"),
        (
            "total_multiply_adds",
            "MACs",
            "multiply-adds of clients in all rounds: training, and cached features",
            "count",
        ),
        ("inference_multiply_adds", "MACs/image", "multiply-adds of classifying one new image, all passes", "count"),
        ("epsilon", "ε", "privacy loss of all rounds at the aggregation's delta, if it is private", "rate"),
        ("epsilon_poisson", "ε, Poisson", "the same as if cohorts were drawn by Poisson sampling", "rate"),
        ("seconds", "Time", "seconds of the whole run (depends on the machine)", "seconds"),
        ("samples_per_second", "Samples/s", "training samples per second (depends on the machine)", "rate"),
        ("peak_memory_bytes", "Memory", "peak memory (depends on the machine)", "bytes"),
    )
)
PREFIX = "metric."  # of the columns of metric plug-ins, which are shares
METRIC = {metric.name: metric for metric in METRICS}
RANKED = tuple(metric.name for metric in METRICS if metric.ranked)


def metric_of(name: str) -> Metric:
    """The metric of a column; a plug-in's has its name as title, and is not ranked. Raises KeyError for any other column."""
    if name.startswith(PREFIX):
        plain = name.removeprefix(PREFIX)
        return Metric(name, plain.replace("_", " ").capitalize(), f"the metric plug-in {plain}, over all test samples")
    return METRIC[name]


def metric_names(columns: Iterable[str]) -> list[str]:
    """All metrics of the core, and those of metric plug-ins among `columns`."""
    return [*METRIC, *sorted(name for name in columns if str(name).startswith(PREFIX))]


MAIN = ("mean_accuracy", "worst_accuracy")

# {state: (letter in a cell that also holds a number, text in the legend)}
STATES = {
    "done": ("", "finished: its last round is in the table"),
    "running": ("R", "started and not finished; no number yet"),
    "pending": ("P", "planned and not started"),
    "missing": ("M", "in the sweep, but there is no folder of the run"),
    "failed": ("F", "stopped by an error"),
    "diverged": ("D", "stopped because its loss was no longer finite"),
    "absent": ("–", "no run of this method with this seed was planned in this setting"),
}

# Columns of a frame of runs besides the metrics and the provenance. One row per run.
COLUMNS = (
    *("run", "setting", "dataset", "partition", "aggregation", "backbone", "method", "label", "reference", "seed"),
    *("state", "said", "round", "rounds"),
)
PROVENANCE = ("config_hash", "partition_hash", "cohort_hash", "data_hash", "backbone_hash", "commit", "code")

TIE = "≈"
REFERENCE = "†"
MINUS = "–"
