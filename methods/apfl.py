"""APFL: each client works with a mix alpha v_k + (1 - alpha) w of values of its own and the shared ones.

Source: Deng et al. 2020, arXiv 2003.13461, algorithm 1 (paper): the client takes steps on its copy of w by the gradient of
f(w), which the server averages; on v_k by the gradient of f(alpha v_k + (1 - alpha) w) with w held; and, if alpha adapts,
on alpha by <v_k - w, gradient of f at the mix>, which is f's derivative by alpha. Here w and v_k are prompts at block 0
and a head (ours). The paper takes the steps in turn; here v_k and alpha take all of theirs (phase 0) before w takes its own
(phase 1), `local.epochs` epochs each (ours): so w in the mix is the one that the server sent, as it is in evaluation. (The
other order scored far lower in a trial; the likely reason, not checked: w has just been fitted to the client, so alpha
goes to 0.) alpha is clipped to [0, 1] (ours)
and has the learning rate, momentum and weight decay of the rest (ours); it starts at 1/2 (ours).

A client that never took part starts with v_k = w (ours; the paper starts all at the same v): it is evaluated with the
shared model, whatever alpha is. `finetune_epochs` trains v_k through the mix, w and alpha being held.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import InputPrompt as Base
from fedbench.method import Param, Phases, Task, Values, linear_head, only_if, option, tokens

SHARED = ("prompt", "head.weight", "head.bias")


@dataclass(frozen=True)
class Method(Base):
    """Shared w: prompt [P, D] at block 0 and a head; own v_k: ``own.prompt``, ``own.head``; alpha [1] per client."""

    alpha: Annotated[float, Field(gt=0, le=1)] = option(
        0.5, "share of the own values in the mix; where it adapts, its start"
    )
    adaptive: bool = option(True, "each client learns its alpha; else it stays as it is given")

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Deng et al. 2020, arXiv 2003.13461"
    phases: ClassVar[Phases | None] = (("own", "alpha"), ("prompt", "head"))
    finetune_phases: ClassVar[Phases | None] = (("own",),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head, shared; the same once more, and alpha [1], for each client."""
        w = self.prompt_param(task) | linear_head(task)
        v = {f"own.{n}": Param(value.init, "local", lr_scale=value.lr_scale) for n, value in w.items()}
        return w | v | {"alpha": Param(torch.full((1,), self.alpha), "local", self.adaptive)}

    def newcomer(self, p: Values) -> dict[str, Tensor]:
        """v_k = w."""
        return {f"own.{name}": p[name] for name in SHARED}

    def _mix(self, p: Values, name: str) -> Tensor:
        """Phase 1 trains w; phase 0, fine-tuning and evaluation use the mix."""
        return p[name] if self.phase == 1 else p["alpha"] * p[f"own.{name}"] + (1 - p["alpha"]) * p[name]

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The same tokens for every sample."""
        return {"prompt": tokens(self._mix(p, "prompt"), cls)}

    def logits(self, p: Values, out: Values) -> Tensor:
        """The head that belongs to the prompts, [B, C]."""
        return F.linear(out["cls"], self._mix(p, "head.weight"), self._mix(p, "head.bias"))

    @only_if(lambda self: self.adaptive and self.phase == 0)
    def steer(self, p: Values, step: Values) -> dict[str, Tensor]:
        """While alpha is trained, its step ends within [0, 1]."""
        return {"alpha": (p["alpha"] + step["alpha"]).clamp(0, 1) - p["alpha"]}
