"""IFCA: each client takes the prompt set of least loss on its data, and the server averages each of the M sets by itself.

Source: Ghosh et al. 2020 (NeurIPS), arXiv 2006.04088, algorithm 1 with model averaging (paper and code). A set is prompts at
block 0 of a frozen ViT (ours), with `head: set` also a head (code); by default all share one averaged head, the weight sharing
of the paper. A client gets the M sets, trains that of least loss on its training data, and returns it with its number. The new
set is the mean over its clients, uniform in the source (`weighting: uniform`), by n_k by default (ours); without clients it
stays (code). Before an evaluation, every client chooses again by its training data (code: test data).
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Fidelity, Param, Task, Values, linear_head, option
from fedbench.method import InputPrompt as Base

SETS = {"prompt": "sets", "head.weight": "sets.head.weight", "head.bias": "sets.head.bias"}  # {copy: all M of it}


@dataclass(frozen=True)
class Method(Base):
    """The server's sets of prompts [M, P, D], perhaps with heads; each client trains a copy of the one that it takes."""

    models: Annotated[int, Field(ge=1)] = option(2, "M: number of sets")
    head: Literal["shared", "set"] = option("shared", "one averaged head, or one in each set", added_later=True)
    family: ClassVar[str] = "grouped"
    search: ClassVar = {**Base.search, "models": {"choice": (2, 3, 4)}}
    citation: ClassVar[str] = "Ghosh et al. 2020 (NeurIPS), arXiv 2006.04088"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    @property
    def candidates(self) -> tuple[str, ...]:
        """The numbers of the sets."""
        return tuple(map(str, range(self.models)))

    def params(self, task: Task) -> dict[str, Param]:
        """The client's prompt [P, D] and head, and the sets of what a client copies."""
        p, m = self.prompt_param(task) | linear_head(task), self.models
        sets = {"prompt": task.prompt_init("sets", m, *p["prompt"].init.shape)}
        if self.head == "set":
            weight, bias = p["head.weight"].init, p["head.bias"].init
            sets |= {
                "head.weight": task.normal("sets.head.weight", m, *weight.shape, std=0.02),
                "head.bias": bias.repeat(m, 1),
            }
        copies = {n: replace(p[n], averaged=False, sent=False) for n in sets}
        return p | copies | {SETS[n]: Param(value, "server") for n, value in sets.items()}

    def _at(self, p: Values) -> Values:
        """The values with the candidate that a client looks at in place of its copy."""
        return p if self.view is None else {**p} | {n: p[s][int(self.view)] for n, s in SETS.items() if s in p}

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The tokens of the copy or candidate."""
        return super().prompts(layer, self._at(p), cls, query)

    def logits(self, p: Values, out: Values) -> Tensor:
        """The scores of its head."""
        return super().logits(self._at(p), out)

    def choose_by_loss(self, p: Values, losses: Values) -> dict[str, Tensor]:
        """A copy of the set with the least loss, and its number."""
        taken = torch.stack([losses[m] for m in self.candidates]).argmin()
        return {n: p[s].index_select(0, taken[None])[0] for n, s in SETS.items() if s in p} | {"taken": taken}

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The mean of each set over the clients that took it."""
        weight = F.one_hot(updates.sums["taken"], self.models) * updates.weight[:, None]  # [K, M]
        total, end = weight.sum(0), updates.updated
        share = (weight / total.clamp(min=1)).T
        mean = {s: torch.tensordot(share.to(end[n]), end[n], dims=1) for n, s in SETS.items() if s in server}
        taken = {s: (total > 0).view(-1, *[1] * (value.dim() - 1)) for s, value in mean.items()}
        return {s: torch.where(taken[s], value, server[s]) for s, value in mean.items()}
