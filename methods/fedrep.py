"""FedRep: a head that stays with the client and shared prompts, trained in turn: the head first, then the prompts.

Source: Collins et al. 2021, arXiv 2102.07078, algorithm 1 (paper): with the received representation fixed the client
makes many updates of its own head, then, with that head, updates of the representation, which the server averages. Here
the representation is the prompts at block 0 (as FedRep in the table of pFedPG, arXiv 2308.15367 - paper). Both phases take
`local.epochs` epochs, whereas the paper gives the head more (ours).

A client that never took part trains a head on the averaged prompts, as the paper's new clients do; so does every client
before it is evaluated, since the prompts have moved since its last round: `finetune_epochs`, of the head alone. With 0 such
a client has the initial head, whose answers are a guess.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from fedbench.method import InputPrompt as Base
from fedbench.method import Param, Phases, Task, linear_head, option


@dataclass(frozen=True)
class Method(Base):
    """Shared prompts [P, D] at block 0, a local head; phase 0 trains the head, phase 1 the prompts."""

    finetune_epochs: Annotated[int, Field(ge=0)] = option(
        1, "epochs each client trains its head on the final prompts before it is evaluated"
    )

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Collins et al. 2021, arXiv 2102.07078"
    phases: ClassVar[Phases | None] = (("head",), ("prompt",))
    finetune_phases: ClassVar[Phases | None] = (("head",),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the local head."""
        return self.prompt_param(task) | linear_head(task, "local")
