"""FedPGP: shared prompts plus a low-rank term per client, and a contrastive loss that keeps the shared ones near the backbone.

Source: Cui et al. 2024 (ICML), arXiv 2405.09771 (paper and code; made for the text prompts of CLIP, so this is a port).
Kept: P_k = P_G + U_k V_k with averaged P_G and local factors U_k [P, r] and V_k [r, D], initially N(0, 0.02^2) (code); the
two-way contrast, the cross-entropy of (cos(z_0, z_G), cos(z_G, z_k)) / tau with the first as the right answer (code); r = 4,
mu = 1 and tau = 0.5 (code's defaults). The contrast pulls the feature under the shared prompts towards that of the model
without learned prompts, and away from that of the client's own prompts.

Changed (ours): prompts enter the image ViT at block 0, so the features are CLS features of each image, while CLIP has one
text feature per class. z_0 is the prompt-free feature of the image without augmentation (in the code, the text feature of
the class name behind placeholder words). CLIP classifies by its text features; here a linear head does, shared by default.
P_G starts as VPT's prompts (in the code from N(0, 0.02^2), as the factors). The code has one learning rate for all, which
`factor_lr_scale: 1` is.

A client that never took part has its initial factors, whose product is almost zero. It is evaluated with the shared prompts
and the shared head; with `head: local` it has the initial head, which can only guess.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, linear_head, option, tokens
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Prompts P_G + U_k V_k [P, D] at block 0. The view ``global`` uses P_G alone, for the contrast."""

    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of the shared prompts")
    rank: Annotated[int, Field(ge=1)] = option(4, "r: rank of the client's term")
    factor_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of U_k and V_k")
    mu: Annotated[float, Field(ge=0)] = option(1.0, "weight of the contrastive loss")
    temperature: Annotated[float, Field(gt=0)] = option(0.5, "tau: the cosines are divided by it")
    head: Literal["shared", "local"] = option("shared", "shared: one averaged head; local: one per client")

    family: ClassVar[str] = "personalised"
    search: ClassVar = {
        **Base.search,
        "factor_lr_scale": {"log": (0.1, 100.0)},
        "mu": {"log": (0.01, 10.0)},
        "rank": {"choice": (1, 2, 4, 8)},
    }
    citation: ClassVar[str] = "Cui et al. 2024, arXiv 2405.09771"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    views: ClassVar[tuple[str, ...]] = ("global",)

    @property
    def uses_query(self) -> bool:
        """z_0."""
        return True

    def params(self, task: Task) -> dict[str, Param]:
        """prompt P_G [P, D], U [P, r], V [r, D], and the head."""
        shapes = {"U": (self.prompt_length, self.rank), "V": (self.rank, task.width)}
        factors = {
            name: Param(task.normal(f"factor.{name}", *shape, std=0.02), "local", lr_scale=self.factor_lr_scale)
            for name, shape in shapes.items()
        }
        return {**self.prompt_param(task), **factors, **linear_head(task, self.head)}

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """P_G + U V, or P_G in the view ``global``; the same tokens for every sample."""
        return {"prompt": tokens(p["prompt"] if self.view == "global" else p["prompt"] + p["U"] @ p["V"], cls)}

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """mu times the contrast of each sample [B]: -log softmax of (positive, negative) / tau at the positive."""
        positive = F.cosine_similarity(query, out["global.cls"], dim=-1)
        negative = F.cosine_similarity(out["global.cls"], out["cls"], dim=-1)
        return self.mu * F.softplus((negative - positive) / self.temperature)
