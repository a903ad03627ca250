"""The split that a run trains on."""

from __future__ import annotations

from fedbench import data
from fedbench.data import Samples, Split, SplitSource
from fedbench.plan.config import RunConfig


def split_of(run: RunConfig, samples: Samples, partitioner: SplitSource) -> Split:
    """The split that `run` trains on and that `fedbench data split` shows. Raises DataError."""
    clients = run.clients
    return data.split(
        samples,
        partitioner,
        clients.number,
        clients.held_out,
        clients.validation,
        run.stream("partition"),
        clients.shots,
        novel_classes(run, samples.num_classes),
    )


def novel_classes(run: RunConfig, classes: int) -> int:
    """How many of the classes, the last ones, are only tested: half of them, rounded down, with ``clients.novel: 0.5``."""
    return int(run.clients.novel * classes)
