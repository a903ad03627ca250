"""The updates that a cohort sends back after one round of local training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
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
    weighting: Literal["samples", "uniform"] = "samples"  # of the aggregation

    @property
    def weight(self) -> Tensor:
        """[K] the clients' weights in a mean: n_k, or 1 for each client with `weighting: uniform`."""
        return self.num_samples if self.weighting == "samples" else torch.ones_like(self.num_samples)

    @property
    def share(self) -> Tensor:
        """[K] the clients' weights in a mean, which sum to 1."""
        return self.weight / self.weight.sum()
