"""FedOpt: the base of aggregations whose server takes optimiser steps. Each plug-in defines one optimiser.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (paper). The mean change of the cohort is the negative gradient of a
server optimiser. As in the paper, there is no bias correction and v starts at tau^2. The mean is weighted by n_k, as in
FedAvg. It applies to the aggregated parameters of any method, after the method's own merge. A method without such parameters
behaves as under FedAvg.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.base.options import option
from fedbench.method.aggregation import Aggregation
from fedbench.method.param import Param, Values
from fedbench.method.task import Task
from fedbench.method.updates import ClientUpdates


@dataclass(frozen=True)
class ServerOptimizer(Aggregation, ABC):
    """Base of server optimisers. Define `moments` and `step`."""

    @abstractmethod
    def moments(self) -> dict[str, float]:
        """{moment: initial value}: the optimiser's state. Each parameter has its own."""

    @abstractmethod
    def step(self, delta: Tensor, moments: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """The step [...] of a parameter whose mean change over the cohort is `delta` [...], and its new moments."""

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """``<moment>.<name>``, such as ``m.prompt``, for each aggregated parameter. They never leave the server."""
        return {
            f"{moment}.{name}": Param(torch.full_like(param.init, start), "server_only")
            for name, param in spec.items()
            if param.aggregated
            for moment, start in self.moments().items()
        }

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """One optimiser step for each parameter."""
        new: dict[str, Tensor] = {}
        for name, value in mean.items():
            x = server[name]
            moments = {moment: server[f"{moment}.{name}"] for moment in self.moments()}
            change, moments = self.step(value - x, moments)
            new |= {name: x + change} | {f"{moment}.{name}": m for moment, m in moments.items()}
        return new


@dataclass(frozen=True)
class AdaptiveServerOptimizer(ServerOptimizer):
    """Steps x <- x + lr m / (sqrt(v) + tau), where m averages the change and v its square over rounds."""

    search: ClassVar = {"lr": {"log": (0.001, 1.0)}}

    lr: Annotated[float, Field(gt=0)] = option(0.03, "eta: the server's learning rate", always_shown=True)
    beta1: Annotated[float, Field(ge=0, lt=1)] = option(0.9, "decay of m, the mean change")
    beta2: Annotated[float, Field(ge=0, lt=1)] = option(0.99, "decay of v, the mean squared change")
    tau: Annotated[float, Field(gt=0)] = option(1e-3, "degree of adaptivity: added to sqrt(v)")

    def moments(self) -> dict[str, float]:
        """m = 0, v = tau^2."""
        return {"m": 0.0, "v": self.tau**2}

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The new v, from the old v and delta^2; the adaptive optimisers differ only in this."""

    def step(self, delta: Tensor, moments: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """The lines of algorithm 2 that compute m, v and x."""
        m = self.beta1 * moments["m"] + (1 - self.beta1) * delta
        v = self.second(moments["v"], delta.square())
        return self.lr * m / (v.sqrt() + self.tau), {"m": m, "v": v}
