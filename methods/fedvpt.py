"""VPT-shallow with FedAvg, and its personalised forms: fields say whether prompts and head are shared or local.

Source: visual prompt tuning is Jia et al. 2022 (arXiv 2203.12119; initialisation from the official code - code). Its federated
form and the local variants follow the baselines of pFedPG (Yang et al. 2023) and FedPer (Arivazhagan et al. 2019,
arXiv 1912.00818) - paper. `own_init` and the choice of fields are ours.

=============  ==========  ===========================================================================
prompt         head        known as
=============  ==========  ===========================================================================
shared         shared      FedVPT
local          shared      personalised prompts (P-PT)
shared         local       FedPer on prompts
local          local       both local, initialised jointly; with own_init: local only (SingleSet-VPT)
shared         shared      with finetune_epochs: FedVPT + local fine-tuning
=============  ==========  ===========================================================================

A client that never took part has the averaged shared values and the initial local ones; with a local head it can only guess.
`finetune_epochs` trains prompts and head on a client's own data before evaluation, whether they are shared or local.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedbench.method import Fidelity, Param, Task, linear_head, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """P prompt tokens after CLS at block 0, without position embedding, and a linear head."""

    prompt: Literal["shared", "local"] = option("shared", "shared: averaged prompts; local: one set per client")
    head: Literal["shared", "local"] = option("shared", "shared: one averaged head; local: one per client")
    own_init: bool = option(
        False,
        "whether each client draws its own initial local values",
        needs=("`prompt: local` or `head: local`", lambda options: "local" in (options.prompt, options.head)),
    )

    citation: ClassVar[str] = "Jia et al. 2022, arXiv 2203.12119; McMahan et al. 2017, arXiv 1602.05629"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head."""
        head = linear_head(task, self.head)
        values = self.prompt_param(task, self.prompt) | head
        return _own(values, task) if self.own_init else values


def _own(values: Mapping[str, Param], task: Task) -> dict[str, Param]:
    """Each local value with a draw per client, with the standard deviation of the common initial value."""
    drawn = {}
    for name, param in values.items():
        rows = task.per_client_normal(f"own.{name}", *param.init.shape, std=float(param.init.square().mean().sqrt()))
        drawn[name] = replace(param, rows=rows) if param.home == "local" else param
    return drawn
