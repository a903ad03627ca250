"""FedDyn: a dynamic regulariser makes the clients' optima agree with the optimum of their sum.

Source: Acar et al. 2021, arXiv 2111.04263, algorithm 1 (paper): client k minimises L_k(y) - <g_k, y> + alpha/2 |y - x|^2 from
the server's x; then g_k <- g_k - alpha (y_k - x). The server sets h <- h - alpha/N sum_S (y_k - x) and
x <- mean_S(y_k) - h / alpha. N is the number of clients that train, S the cohort. Clients count equally. Nothing more than
under FedAvg is sent. It applies to the trained shared values of any method, also where the method's own merge has made them
(ours).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, Param, Task, Values, option


@dataclass(frozen=True)
class Aggregation(Base):
    """A linear and a proximal term per client, and the server's mean of the linear terms."""

    weighting: Literal["uniform"] = option("uniform", "clients count equally")

    search: ClassVar = {"alpha": {"log": (0.001, 1.0)}}

    alpha: Annotated[float, Field(gt=0)] = option(0.1, "weight of the regulariser")

    citation: ClassVar[str] = "Acar et al. 2021, arXiv 2111.04263"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """g_k and h of each value, initially zero, and 1/N."""
        params: dict[str, Param] = {}
        for name, param in spec.items():
            if param.aggregated:
                zero = torch.zeros_like(param.init)
                params |= {f"g_k.{name}": Param(zero, "local", trained=False), f"h.{name}": Param(zero, "server_only")}
        return params | {
            "1/N": Param(torch.tensor(1 / (task.num_clients - task.held_out), dtype=torch.float64), "server_only")
        }

    def extra_loss(self, p: Values, received: Values) -> Tensor:
        """alpha/2 |y - x|^2 - <g_k, y>."""
        return sum(  # type: ignore[return-value]
            self.alpha / 2 * (p[n] - x).square().sum() - (p[f"g_k.{n}"] * p[n]).sum() for n, x in received.items()
        )

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """New g_k [S, ...] of the cohort S, the server's h and x."""
        new: dict[str, Tensor] = {}
        for name in mean:
            y, h = updates.updated[name], server[f"h.{name}"]
            change = y - server[name]
            h = h - self.alpha * server["1/N"].to(h) * change.sum(0)
            new |= {f"g_k.{name}": updates.received[f"g_k.{name}"] - self.alpha * change, f"h.{name}": h}
            new[name] = y.mean(0) - h / self.alpha
        return new
