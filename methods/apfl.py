"""APFL: each client uses a mix alpha v_k + (1 - alpha) w of personal values v_k and the shared values w.

Source: Deng et al. 2020, arXiv 2003.13461, algorithm 1 (paper). The client takes steps on its copy of w with the gradient
of f(w), and the server averages w; on v_k with the gradient of f(alpha v_k + (1 - alpha) w), w held fixed; and, if alpha
adapts, on alpha with <v_k - w, gradient of f at the mix>, the derivative of f by alpha. Here w and v_k are prompts at block
0 and a head (ours). The paper alternates the steps. Here v_k and alpha take all of theirs in phase 0, before w in phase 1,
`local.epochs` epochs each (ours), so that the mix uses the w that the server sent, as evaluation does. The other order
scored far lower in a trial; probably alpha goes to 0 because w has just been fitted to the client (not checked). alpha is
clipped to [0, 1], has the learning rate, momentum and weight decay of the other values, and starts at 1/2 (all ours).
The paper's server averages uniformly over the cohort (paper), which `aggregation: {name: fedavg, weighting: uniform}` does;
the default here is n_k (ours).

A client that never took part starts with v_k = w (ours; in the paper all clients start at the same v). It is evaluated with
the shared model, whatever alpha is. `finetune_epochs` trains v_k through the mix, with w and alpha fixed.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Phases, Task, Values, linear_head, only_if, option, tokens
from fedbench.method import InputPrompt as Base

SHARED = ("prompt", "head.weight", "head.bias")


@dataclass(frozen=True)
class Method(Base):
    """Shared w: prompt [P, D] at block 0 and a head. Personal v_k: ``own.prompt``, ``own.head``; alpha [1] per client."""

    alpha: Annotated[float, Field(gt=0, le=1)] = option(
        0.5, "share of the personal values in the mix; its initial value if it adapts"
    )
    adaptive: bool = option(True, "whether each client learns its own alpha")

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "alpha": {"linear": (0.1, 0.9)}}
    citation: ClassVar[str] = "Deng et al. 2020, arXiv 2003.13461"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    phases: ClassVar[Phases | None] = (("own", "alpha"), ("prompt", "head"))
    finetune_phases: ClassVar[Phases | None] = (("own",),)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head, both shared; a local copy of each, and a local alpha [1]."""
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
        """Clip alpha to [0, 1] while it is trained."""
        return {"alpha": (p["alpha"] + step["alpha"]).clamp(0, 1) - p["alpha"]}
