"""FedYogi: the server takes Yogi steps along the mean change of the cohort; v grows and shrinks by bounded amounts.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (paper).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedbench.method import AdaptiveServerOptimizer, Fidelity


@dataclass(frozen=True)
class Aggregation(AdaptiveServerOptimizer):
    """v moves towards Delta^2 by (1 - beta2) Delta^2, whatever the distance."""

    citation: ClassVar[str] = "Reddi et al. 2021, arXiv 2003.00295"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)."""
        return v - (1 - self.beta2) * square * (v - square).sign()
