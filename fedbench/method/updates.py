"""The updates that a cohort sends back after one round of local training."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ClientUpdates:
    """The updates of the K clients of a cohort; all tensors are stacked, [K, ...]."""

    clients: Tensor  # [K] client numbers
    received: dict[str, Tensor]  # the values that they started from
    updated: dict[str, Tensor]  # the values after local training
    sums: dict[str, Tensor]  # what `observe` added up over the batches
    num_samples: Tensor  # [K] training samples, n_k
    steps: Tensor  # [K] optimiser steps
    loss: Tensor  # [K] mean training loss over the client's samples in this round
    lr: float  # learning rate of this round
    gradient: dict[str, Tensor] = field(default_factory=dict)  # mean over a client's steps, if an aggregation wants it
