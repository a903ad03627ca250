"""SCAFFOLD: control variates correct each client's steps for the difference between its gradient and the cohort's.

Source: Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1 (paper): clients step by g(y) - c_k + c; option II sets c_k
<- c_k - c + (x - y)/(K lr); then c <- c + |S|/N mean_S(new c_k - old c_k) and x <- x + lr_g (mean(y) - x).

What differs: (x - y)/(K lr) is the mean of the K corrected gradients only for plain SGD with one learning rate. With
momentum, Adam or learning-rate factors it is no gradient. Therefore clients send the mean gradient itself,
``updates.gradient`` (ours). For plain SGD it is the same (without weight decay, which is left to the optimizer), and with
every optimizer it is a control variate. Clients count equally in c, as in the paper; mean(y) is weighted by n_k, as in
FedAvg (ours). N is the number of clients that train. The correction enters as the loss <c - c_k, y - x>, whose gradient it
is. It applies to the trained shared values of any method; a method without such values is not corrected and sends nothing
more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, Param, Task, Values, option


@dataclass(frozen=True)
class Aggregation(Base):
    """A control variate per client and one at the server, for each trained shared value."""

    lr: Annotated[float, Field(gt=0)] = option(1.0, "lr_g: the server's step towards the mean of the clients' values")

    search: ClassVar = {"lr": {"log": (0.1, 10.0)}}
    citation: ClassVar[str] = "Karimireddy et al. 2020, arXiv 1910.06378"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    wants_gradient: ClassVar[bool] = True

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """c and c_k of each value, initially zero, and 1/N."""
        variates: dict[str, Param] = {}
        for name, param in spec.items():
            if param.aggregated:
                zero = torch.zeros_like(param.init)
                variates |= {f"c.{name}": Param(zero, "server"), f"c_k.{name}": Param(zero, "local", trained=False)}
        return variates | {
            "1/N": Param(torch.tensor(1 / (task.num_clients - task.held_out), dtype=torch.float64), "server_only")
        }

    def extra_loss(self, p: Values, received: Values) -> Tensor:
        """<c - c_k, y - x>."""
        return sum(((p[f"c.{n}"] - p[f"c_k.{n}"]) * (p[n] - x)).sum() for n, x in received.items())  # type: ignore[return-value]

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """New c_k [S, ...] of the cohort S, the server's c and x."""
        new: dict[str, Tensor] = {}
        for name, y in mean.items():
            c, old = server[f"c.{name}"], updates.received[f"c_k.{name}"]
            moved = old - c + updates.gradient[name]
            new |= {f"c_k.{name}": moved, f"c.{name}": c + server["1/N"] * (moved - old).sum(0)}
            new[name] = server[name] + self.lr * (y - server[name])
        return new
