"""Ditto: a shared model as in FedVPT, and a personal copy for each client that is pulled towards the shared one.

Source: Li et al. 2021, arXiv 2012.04221, algorithm 1 (paper). In each round a client takes local steps on the shared w,
which the server averages, and on its own v_k with the gradient of F_k(v_k) + lambda/2 |v_k - w^t|^2, where w^t is what the
server sent in this round. Evaluation uses v_k. Here w and v_k are prompts at block 0 and a head (ours). They are trained in
two phases of `local.epochs` epochs each; their order does not matter, since v_k depends on w^t only. The paper's server
averages uniformly over the cohort (paper), which `aggregation: {name: fedavg, weighting: uniform}` does; the default here
is n_k (ours).

A client that never took part starts from the current shared model (ours; in the paper all clients start at w^0). Without
further training it is evaluated with the shared model. `finetune_epochs` trains the personal copy, including the pull.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Phases, Task, Values, linear_head, option, tokens
from fedbench.method import InputPrompt as Base

SHARED = ("prompt", "head.weight", "head.bias")


@dataclass(frozen=True)
class Method(Base):
    """Shared w: prompt [P, D] at block 0 and a head. Personal v_k: ``own.prompt``, ``own.head``."""

    pull: Annotated[float, Field(ge=0)] = option(0.1, "lambda: weight of the squared distance from v_k to w^t")

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "pull": {"log": (0.01, 10.0)}}
    citation: ClassVar[str] = "Li et al. 2021, arXiv 2012.04221"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    phases: ClassVar[Phases | None] = (("prompt", "head"), ("own",))
    finetune_phases: ClassVar[Phases | None] = (("own",),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head, both shared, and a local copy of each."""
        w = self.prompt_param(task) | linear_head(task)
        return w | {f"own.{n}": Param(v.init, "local", lr_scale=v.lr_scale) for n, v in w.items()}

    def newcomer(self, p: Values) -> dict[str, Tensor]:
        """v_k = w^t."""
        return {f"own.{name}": p[name] for name in SHARED}

    def _now(self, name: str) -> str:
        """Phase 0 trains w; phase 1, fine-tuning and evaluation use v_k."""
        return name if self.phase == 0 else f"own.{name}"

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The same tokens for every sample."""
        return {"prompt": tokens(p[self._now("prompt")], cls)}

    def logits(self, p: Values, out: Values) -> Tensor:
        """The head that belongs to the prompts, [B, C]."""
        return F.linear(out["cls"], p[self._now("head.weight")], p[self._now("head.bias")])

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor | None) -> Tensor:
        """lambda/2 |v_k - w^t|^2 in the phase that trains v_k."""
        if self.phase == 0:
            return p["prompt"].new_zeros(())
        return self.pull / 2 * sum((p[f"own.{name}"] - received[name]).square().sum() for name in SHARED)  # type: ignore[return-value]
