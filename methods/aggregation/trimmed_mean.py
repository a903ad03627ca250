"""Trimmed mean: for each number, the server leaves out the largest and smallest values of the cohort and averages the rest.

Source: Yin et al. 2018, arXiv 1803.01498, option II (paper). Clients count equally. It takes the place of the mean over the
trained shared values, also where the method's own merge has made them (ours). It leaves out ``trim`` K values at each end,
rounded up (ours), so that a small cohort is trimmed as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, PlannedTask, Values, option


@dataclass(frozen=True)
class Aggregation(Base):
    """The mean of each number over the cohort, without its extremes."""

    weighting: Literal["uniform"] = option("uniform", "clients count equally")

    search: ClassVar = {"trim": {"linear": (0.05, 0.4)}}

    trim: Annotated[float, Field(gt=0, lt=0.5)] = option(0.1, "share of the clients that is left out at each end")

    citation: ClassVar[str] = "Yin et al. 2018, arXiv 1803.01498"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """A cohort must be larger than what is left out at both ends."""
        cohort = run["clients"]["per_round"]
        if 2 * (cut := math.ceil(self.trim * cohort)) >= cohort:
            raise ValueError(
                f"trim {self.trim} leaves out {cut} of {cohort} clients per round at each end, so none is left"
            )

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """The mean over the clients between the extremes, at least one."""
        count = len(updates.clients)
        cut = min(math.ceil(self.trim * count), (count - 1) // 2)
        return {name: updates.updated[name].sort(0).values[cut : count - cut].mean(0) for name in mean}
