"""FedOpt: what aggregations by an optimiser of the server's have in common; plug-ins hold the optimiser.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (paper): the mean change of the cohort is the (negative) gradient
of an optimiser on the server. Without bias correction, and v starts at tau^2, as there. The mean is weighted by n_k, like
FedAvg's. It applies to the trained shared values of any method, after the method's own merge; where a method shares
nothing that is trained there is nothing to step, and clients are what they are under FedAvg.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation, Param, Report, Task, Values, option


@dataclass(frozen=True)
class FedOpt(Aggregation, ABC):
    """Base of server optimisers: `moments` and `step`."""

    @abstractmethod
    def moments(self) -> dict[str, float]:
        """The optimiser's state: each moment, of the shape of the value that it belongs to, and what it starts from."""

    @abstractmethod
    def step(self, delta: Tensor, moments: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to a value [...] whose mean change over the cohort is `delta` [...], and its new moments."""

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """``m.<name>`` and the like for each trained shared value; they never leave the server."""
        return {
            f"{moment}.{name}": Param(torch.full_like(param.init, start), "server_only")
            for name, param in spec.items()
            if param.aggregated
            for moment, start in self.moments().items()
        }

    def merge(self, server: Values, report: Report, mean: Values) -> dict[str, Tensor]:
        """One step of the optimiser for each value."""
        new: dict[str, Tensor] = {}
        for name, value in mean.items():
            x = server[name]
            moments = {moment: server[f"{moment}.{name}"] for moment in self.moments()}
            change, moments = self.step(value - x, moments)
            new |= {name: x + change} | {f"{moment}.{name}": m for moment, m in moments.items()}
        return new


@dataclass(frozen=True)
class Adaptive(FedOpt):
    """m is the running mean of Delta, v says how large it is in each coordinate: x <- x + lr m / (sqrt(v) + tau)."""

    search: ClassVar = {"lr": {"log": (0.001, 1.0)}}

    lr: Annotated[float, Field(gt=0)] = option(0.03, "eta: the server's learning rate", told=True)
    beta1: Annotated[float, Field(ge=0, lt=1)] = option(0.9, "decay of m, the mean change")
    beta2: Annotated[float, Field(ge=0, lt=1)] = option(0.99, "decay of v, the mean squared change")
    tau: Annotated[float, Field(gt=0)] = option(1e-3, "degree of adaptivity: small changes are taken for this large")

    def moments(self) -> dict[str, float]:
        """m = 0, v = tau^2."""
        return {"m": 0.0, "v": self.tau**2}

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The new v, from the old one and Delta^2: the difference between the adaptive optimisers."""

    def step(self, delta: Tensor, moments: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """Algorithm 2's lines for m, v and x."""
        m = self.beta1 * moments["m"] + (1 - self.beta1) * delta
        v = self.second(moments["v"], delta.square())
        return self.lr * m / (v.sqrt() + self.tau), {"m": m, "v": v}
