"""Ditto: the shared model is trained as FedVPT's; beside it each client trains a copy of its own, pulled to the shared one.

Source: Li et al. 2021, arXiv 2012.04221, algorithm 1 (paper): in each round a client of the cohort takes local steps on
the shared w, which the server averages, and on its own v_k by the gradient of F_k(v_k) + lambda/2 |v_k - w^t|^2, where w^t
is what the server sent in this round. Evaluation is with v_k. Here w and v_k are prompts at block 0 and a head (ours); the
two take turns as phases of `local.epochs` epochs each, and since v_k sees only w^t their order changes nothing.

A client that never took part starts its own copy as the shared model of that day (ours; the paper starts all at w^0), so
without training it is evaluated with the shared model; `finetune_epochs` trains the own copy, pull and all.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import InputPrompt as Base
from fedbench.method import Param, Phases, Task, Values, linear_head, option, tokens

SHARED = ("prompt", "head.weight", "head.bias")


@dataclass(frozen=True)
class Method(Base):
    """Shared w: prompt [P, D] at block 0 and a head; own v_k: ``own.prompt``, ``own.head``."""

    pull: Annotated[float, Field(ge=0)] = option(0.1, "lambda: weight of the own copy's squared distance to w^t")

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Li et al. 2021, arXiv 2012.04221"
    phases: ClassVar[Phases | None] = (("prompt", "head"), ("own",))
    finetune_phases: ClassVar[Phases | None] = (("own",),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head, shared, and the same once more for each client."""
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
        """lambda/2 |v_k - w^t|^2 where v_k is trained."""
        if self.phase == 0:
            return p["prompt"].new_zeros(())
        return self.pull / 2 * sum((p[f"own.{name}"] - received[name]).square().sum() for name in SHARED)  # type: ignore[return-value]
