"""FedBABU: the head keeps its random initial values while the prompts are federated; each client then fine-tunes both.

Source: Oh et al. 2022, arXiv 2106.06042 (paper). All clients share one random head that is never trained or averaged; only the
body is. Before evaluation a client fine-tunes the whole model on its own data. Here the body is the prompts at block 0 (as for
FedBABU in pFedPG's table, arXiv 2308.15367 - paper). The head is N(0, 0.02^2), like every head of the suite (ours). It follows
from the seed, so it is not sent. Prompts learn slowly through a random head: in a short run, fine-tuning gives most of the
accuracy (ours, observed on glyphs). The source averages uniformly over the cohort, which `aggregation: {name: fedavg,
weighting: uniform}` does; the default here is n_k (ours).

A client that never took part is like any other: it fine-tunes the averaged prompts and the random head. `finetune_epochs: 0`
evaluates the model without fine-tuning.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from fedbench.method import Fidelity, Param, Phases, Task, linear_head, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Shared prompts [P, D] at block 0; a fixed head, the same for all clients, until fine-tuning."""

    finetune_epochs: Annotated[int, Field(ge=0)] = option(
        5, "epochs for which each client fine-tunes prompts and head on its own data before evaluation"
    )

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "finetune_epochs": {"choice": (1, 2, 5, 10)}}
    citation: ClassVar[str] = "Oh et al. 2022, arXiv 2106.06042"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    finetune_phases: ClassVar[Phases | None] = (("prompt", "head"),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head, which is not trained in rounds and is local, since each client fine-tunes its own."""
        return self.prompt_param(task) | linear_head(task, "local", trained=False)
