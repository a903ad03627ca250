"""FedProx: FedAvg with a proximal term that keeps each client near the values that the server sent.

Source: Li et al. 2020, arXiv 1812.06127, equation 2 (paper): h_k(w) = F_k(w) + mu/2 |w - w_t|^2, with the *squared* distance.
Here w are the shared prompts and head of any method, not a whole network (ours).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import Fidelity, Values, option


@dataclass(frozen=True)
class Aggregation(Base):
    """FedAvg with the proximal term."""

    search: ClassVar = {"mu": {"log": (0.001, 1.0)}}

    mu: Annotated[float, Field(ge=0)] = option(0.01, "weight of the proximal term")

    citation: ClassVar[str] = "Li et al. 2020, arXiv 1812.06127"
    fidelity: ClassVar[Fidelity] = "exact port"

    def extra_loss(self, p: Values, received: Values) -> Tensor:
        """mu/2 times the squared distance between the shared parameters and the received ones."""
        return self.mu / 2 * sum((p[name] - value).square().sum() for name, value in received.items())  # type: ignore[return-value]
