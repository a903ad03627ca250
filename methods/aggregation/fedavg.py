"""FedAvg: the mean of the clients' trained values, weighted by their numbers of samples (paper, algorithm 1)."""

from dataclasses import dataclass
from typing import ClassVar

from fedbench.method import Aggregation as Base
from fedbench.method import Fidelity


@dataclass(frozen=True)
class Aggregation(Base):
    """The base, as it is."""

    fidelity: ClassVar[Fidelity] = "exact port"
