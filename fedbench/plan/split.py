"""The split that a run trains on."""

from __future__ import annotations

from fedbench import data
from fedbench.data import Samples, Split, SplitSource
from fedbench.plan.config import RunConfig


def split_of(run: RunConfig, samples: Samples, partitioner: SplitSource) -> Split:
    """The split that `run` trains on and that `fedbench data split` shows. Raises DataError."""
    clients = run.clients
    return data.split(
        samples, partitioner, clients.number, clients.held_out, clients.validation, run.stream("partition")
    )
