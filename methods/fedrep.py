"""FedRep: a local head and shared prompts, trained in turn: first the head, then the prompts.

Source: Collins et al. 2021, arXiv 2102.07078, algorithm 1 (paper). With the received representation fixed, the client makes
many updates of its own head; then, with that head fixed, it updates the representation, which the server averages. Here the
representation is the prompts at block 0 (as for FedRep in pFedPG's table, arXiv 2308.15367 - paper). Both phases take
`local.epochs` epochs; the paper gives the head more (ours). The paper's server averages uniformly over the cohort (paper),
which `aggregation: {name: fedavg, weighting: uniform}` does; the default here is n_k (ours).

A client that never took part trains a head on the averaged prompts, as the paper's new clients do. Every client does so
before evaluation, because the prompts have changed since its last round: `finetune_epochs` of the head alone, 1 by default
(ours). The authors' code trains the head for at least 10 epochs before its last evaluation (code): `finetune_epochs: 10`.
With `finetune_epochs: 0` a new client has the initial head, which can only guess.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from fedbench.method import Fidelity, Param, Phases, Task, linear_head, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Shared prompts [P, D] at block 0 and a local head. Phase 0 trains the head, phase 1 the prompts."""

    finetune_epochs: Annotated[int, Field(ge=0)] = option(
        1, "epochs for which each client trains its head on the final prompts before evaluation"
    )

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "finetune_epochs": {"choice": (1, 2, 5, 10)}}
    citation: ClassVar[str] = "Collins et al. 2021, arXiv 2102.07078"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    phases: ClassVar[Phases | None] = (("head",), ("prompt",))
    finetune_phases: ClassVar[Phases | None] = (("head",),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the local head."""
        return self.prompt_param(task) | linear_head(task, "local")
