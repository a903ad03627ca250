"""FedAvgM: the server follows the mean change of the cohort with momentum.

Source: Hsu et al. 2019, arXiv 1909.06335, section 3 (paper): v <- beta v + Delta, x <- x + lr v. With beta = 0 and lr = 1
it is FedAvg. With lr = 1 a steady change grows to 1/(1 - beta) times FedAvg's, which helps short runs more than long ones.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, ServerOptimizer, Values, option


@dataclass(frozen=True)
class Aggregation(ServerOptimizer):
    """Momentum on the server."""

    search: ClassVar = {"lr": {"log": (0.1, 10.0)}}

    lr: Annotated[float, Field(gt=0)] = option(1.0, "the server's learning rate", always_shown=True)
    beta: Annotated[float, Field(ge=0, lt=1)] = option(0.9, "the server's momentum")

    citation: ClassVar[str] = "Hsu et al. 2019, arXiv 1909.06335"
    fidelity: ClassVar[Fidelity] = "exact port"

    def moments(self) -> dict[str, float]:
        """v = 0."""
        return {"v": 0.0}

    def step(self, delta: Tensor, moments: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """v <- beta v + Delta; x moves by lr v."""
        v = self.beta * moments["v"] + delta
        return self.lr * v, {"v": v}
