"""FedAdam: the server takes Adam steps along the mean change of the cohort.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (paper).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedbench.method import AdaptiveServerOptimizer, Fidelity


@dataclass(frozen=True)
class Aggregation(AdaptiveServerOptimizer):
    """v is the running mean of Delta^2."""

    citation: ClassVar[str] = "Reddi et al. 2021, arXiv 2003.00295"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """v <- beta2 v + (1 - beta2) Delta^2."""
        return self.beta2 * v + (1 - self.beta2) * square
