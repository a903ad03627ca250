"""IFCA: each client takes the prompt set of least loss on its data, and the server averages each of the M sets by itself.

Source: Ghosh et al. 2020 (NeurIPS), arXiv 2006.04088, algorithm 1 with model averaging (paper and code), and its weight sharing
(paper): here all sets share one averaged head, and a set is prompts at block 0 of a frozen ViT (ours). The server sends the M
sets. A client trains the one with the least loss on its training data and returns it with its number. The new set is the mean
over the clients that took it, uniform in the source (`weighting: uniform`), by n_k by default (ours). A set that nobody took
stays (code). Sets start from different draws.

Before an evaluation, each client chooses again by its training data (in the code by the test data), also if it never took part.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Fidelity, Param, Task, Values, linear_head, option, tokens
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """The server's prompt sets [M, P, D]; each client trains a copy of the one that it takes, and the shared head."""

    models: Annotated[int, Field(ge=1)] = option(2, "M: number of prompt sets")

    family: ClassVar[str] = "grouped"
    search: ClassVar = {**Base.search, "models": {"choice": (2, 3, 4)}}
    citation: ClassVar[str] = "Ghosh et al. 2020 (NeurIPS), arXiv 2006.04088"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    @property
    def candidates(self) -> tuple[str, ...]:
        """The numbers of the sets."""
        return tuple(map(str, range(self.models)))

    def params(self, task: Task) -> dict[str, Param]:
        """sets [M, P, D]; the client's copy of one, prompt [P, D]; and the head."""
        copy = replace(self.prompt_param(task)["prompt"], averaged=False, sent=False)
        sets = task.prompt_init("sets", self.models, *copy.init.shape)
        return {"prompt": copy, "sets": Param(sets, "server")} | linear_head(task)

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The tokens of the client's copy, or of the candidate that it looks at."""
        return {"prompt": tokens(p["prompt"] if self.view is None else p["sets"][int(self.view)], cls)}

    def choose_by_loss(self, p: Values, losses: Values) -> dict[str, Tensor]:
        """A copy of the set with the least loss, and its number."""
        taken = torch.stack([losses[m] for m in self.candidates]).argmin()
        return {"prompt": p["sets"].index_select(0, taken[None])[0], "taken": taken}

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The mean of each set over the clients that took it."""
        weight = F.one_hot(updates.sums["taken"], self.models) * updates.weight[:, None]  # [K, M]
        total, prompt = weight.sum(0), updates.updated["prompt"]
        mean = torch.tensordot((weight / total.clamp(min=1)).T.to(prompt), prompt, dims=1)
        return {"sets": torch.where(total[:, None, None] > 0, mean, server["sets"])}
