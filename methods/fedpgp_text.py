"""FedPGP in its original form: context vectors of CLIP's text tower with a low-rank term per client, and a contrastive loss.

Source: Cui et al., ICML 2024, arXiv 2405.09771, and FLiP (https://github.com/0-ml/flip, flcore/models/clip/FedPGP.py):
contexts P_G + U_k V_k with averaged P_G and local factors, all initially N(0, 0.02^2); the loss adds mu times the cross
entropy of (cos(z_0, z_G), cos(z_G, z_k)) / tau, with the first as the right answer, in the mean over classes. z_G and z_k are
the class texts behind P_G and behind the client's contexts. z_0 are the texts of the backbone's template; in the code they
are the class names behind placeholder words. `fedpgp` is the same method with prompts of the image ViT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Param, Task, Values, option


@dataclass(frozen=True)
class Method(Base):
    """Context vectors P_G + U_k V_k [P, D_text], and a contrast of the class texts behind P_G and behind both."""

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Cui et al. 2024, arXiv 2405.09771"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    search: ClassVar = {**Base.search, "mu": {"log": (0.01, 10.0)}, "rank": {"choice": (1, 2, 4, 8)}}

    rank: Annotated[int, Field(ge=1)] = option(4, "r: rank of the client's term")
    mu: Annotated[float, Field(ge=0)] = option(1.0, "weight of the contrastive loss")
    temperature: Annotated[float, Field(gt=0)] = option(0.5, "tau: the cosines are divided by it")

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` [P, D_text], and the local factors ``U`` [P, r] and ``V`` [r, D_text]."""
        u = task.normal("U", self.context_length, self.rank, std=0.02)
        v = task.normal("V", self.rank, task.text_width, std=0.02)
        return self.context_param(task) | {"U": Param(u, "local"), "V": Param(v, "local")}

    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The slots ``context``, the client's, and ``shared``, which only the contrast reads."""
        return {"context": p["context"] + p["U"] @ p["V"], "shared": p["context"]}

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """The contrast, a scalar."""
        shared = p["text.shared"]
        cosines = torch.stack([(p["class_text"] * shared).sum(-1), (shared * p["text.context"]).sum(-1)], -1)  # [C, 2]
        return -self.mu * (cosines / self.temperature).log_softmax(-1)[:, 0].mean()
