"""FedVPT with supervised contrast: features of samples of one class attract each other, those of other classes repel.

Source: Khosla et al. 2020 (NeurIPS), arXiv 2004.11362, equation 2, L_out (paper). A client adds `contrast` times the mean over
the samples of a batch of

    -1 / |P(i)| sum_{p in P(i)} log( exp(z_i z_p / tau) / sum_{a != i} exp(z_i z_a / tau) )

to the cross entropy, where P(i) are the other samples of the class of i in the batch, and a goes over all other samples. A
sample without a partner counts zero (code). Ours: z is the prompted CLS feature, scaled to length 1, without a projection
head; a sample has one view in place of two; and the cross entropy is trained at the same time, not afterwards, as in Gunel
et al. 2021 (ICLR), arXiv 2011.01403.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, linear_head, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Shared prompts [P, D] and a shared head."""

    contrast: Annotated[float, Field(ge=0)] = option(0.5, "weight of the contrastive term")
    temperature: Annotated[float, Field(gt=0)] = option(0.1, "tau: divides the cosines of features")

    search: ClassVar = {**Base.search, "contrast": {"log": (0.03, 3.0)}}
    citation: ClassVar[str] = "Khosla et al. 2020 (NeurIPS), arXiv 2004.11362"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    reads_batch: ClassVar[bool] = True

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head."""
        return self.prompt_param(task) | linear_head(task)

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor | None) -> Tensor:
        """`contrast` times L_out of each sample, [B]."""
        z, y = F.normalize(out["cls"], dim=-1), out["y"]
        others = (out["weight"] > 0) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)  # [B, B]
        partners = others & (y[:, None] == y)
        scores = (z @ z.T / self.temperature).masked_fill(~others, -1e9)
        log_share = scores - scores.logsumexp(-1, keepdim=True)
        return -self.contrast * (log_share * partners).sum(-1) / partners.sum(-1).clamp(min=1)
