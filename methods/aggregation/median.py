"""Coordinate-wise median: the server takes the median over the cohort of each number, so that a minority cannot move it far.

Source: Yin et al. 2018, arXiv 1803.01498, option I (paper). Clients count equally. With an even number of clients, the median
is the mean of the two middle values. It takes the place of the mean over the trained shared values, also where the method's
own merge has made them (ours).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, Values, option


@dataclass(frozen=True)
class Aggregation(Base):
    """The median of each number over the cohort."""

    weighting: Literal["uniform"] = option("uniform", "clients count equally")

    citation: ClassVar[str] = "Yin et al. 2018, arXiv 1803.01498"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """The median over clients of each value."""
        ordered = {name: updates.updated[name].sort(0).values for name in mean}
        return {name: (rows[(len(rows) - 1) // 2] + rows[len(rows) // 2]) / 2 for name, rows in ordered.items()}
