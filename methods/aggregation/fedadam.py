"""FedAdam: the server follows the cohort's mean change by Adam.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (paper). What it shares with FedYogi is in ``fedbench/method/server_optimizers.py``.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedbench.method.server_optimizers import Adaptive


@dataclass(frozen=True)
class Aggregation(Adaptive):
    """v is the running mean of Delta^2."""

    citation: ClassVar[str] = "Reddi et al. 2021, arXiv 2003.00295"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """v <- beta2 v + (1 - beta2) Delta^2."""
        return self.beta2 * v + (1 - self.beta2) * square
