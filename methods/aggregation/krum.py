"""Krum: the server takes the values of the client that lies closest to its nearest neighbours; Multi-Krum averages several.

Source: Blanchard et al. 2017, NeurIPS, section 4 (paper): a client's score is the sum of the squared distances to its
K - f - 2 nearest other clients, of which f may be faulty; the m clients with the smallest scores are averaged. Krum: m = 1.
Distances are over all trained shared values together. Clients count equally. The result takes the place of the mean, also
where the method's own merge has made the values (ours).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, PlannedTask, Values, option


@dataclass(frozen=True)
class Aggregation(Base):
    """The mean of the clients with the smallest scores."""

    weighting: Literal["uniform"] = option("uniform", "clients count equally")

    byzantine: Annotated[int, Field(ge=0)] = option(1, "f: clients of a cohort that may be faulty")
    selected: Annotated[int, Field(ge=1)] = option(1, "m: clients that are averaged; 1: Krum, more: Multi-Krum")

    citation: ClassVar[str] = "Blanchard et al. 2017, NeurIPS"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """The paper's condition K >= 2 f + 3, and no more clients averaged than can be trusted."""
        cohort = run["clients"]["per_round"]
        if cohort < 2 * self.byzantine + 3:
            raise ValueError(
                f"byzantine {self.byzantine} needs at least 2 f + 3 = {2 * self.byzantine + 3} clients per round, "
                f"found {cohort}"
            )
        if self.selected > cohort - self.byzantine:
            raise ValueError(
                f"selected {self.selected} of {cohort} clients per round leaves out fewer than byzantine {self.byzantine}"
            )

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """The mean of the clients with the smallest scores."""
        if not mean:
            return {}
        count = len(updates.clients)
        points = torch.cat([updates.updated[name].reshape(count, -1).double() for name in mean], 1)
        square = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
        neighbours = min(max(1, count - self.byzantine - 2), count - 1)
        scores = square.sort(1).values[:, 1 : 1 + neighbours].sum(1)  # the first distance is that to itself
        best = scores.argsort(stable=True)[: self.selected]
        return {name: updates.updated[name][best].mean(0) for name in mean}
