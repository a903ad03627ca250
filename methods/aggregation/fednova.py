"""FedNova: the server averages the clients' changes per step, so that clients with many steps do not pull the objective.

Source: Wang et al. 2020, arXiv 2007.07481, equation 7 (paper and official code): x <- x - tau_eff sum_k p_k (x - y_k) / |a_k|,
where p_k is the share of client k in a mean and tau_eff = sum_k p_k |a_k|. For tau steps of SGD |a_k| = tau. With momentum rho,
which adds up past gradients, |a_k| = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho).

What differs: tau counts the steps of all local phases, also for values that only one of them trains (ours). It applies to the
trained shared values of any method, also where the method's own merge has made them (ours).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, Param, PlannedTask, Task, Values


@dataclass(frozen=True)
class Aggregation(Base):
    """Normalised averaging."""

    citation: ClassVar[str] = "Wang et al. 2020, arXiv 2007.07481"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """|a_k| is known for SGD only."""
        if (optimizer := run["local"]["optimizer"]) != "sgd":
            raise ValueError(f"it normalises steps of SGD, with or without momentum; local.optimizer is {optimizer}")

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """The momentum of the clients' SGD."""
        return {"rho": Param(torch.tensor(task.local.get("momentum", 0.0), dtype=torch.float64), "server_only")}

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """One normalised step."""
        rho, tau = server["rho"].double(), updates.steps.double()
        size = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)  # |a_k|, [K]
        share = updates.share.double()
        weight = (share * size).sum() * share / size
        changes = {name: updates.updated[name] - server[name] for name in mean}
        return {n: server[n] + torch.tensordot(weight.to(change), change, dims=1) for n, change in changes.items()}
