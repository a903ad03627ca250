"""FedOTP: a shared and a local context meet the patches of an image by optimal transport, which weighs their cosines.

Source: Li et al., CVPR 2024, arXiv 2403.00041; official code https://github.com/HongxiaLee/FedOTP (trainers/GLP_OT.py): two
texts of each class, behind averaged contexts and behind the client's own, and the patch features of an image. A plan T [M, 2]
between patches and texts, computed without gradient from exp(-(1 - cosine) / eps), weighs the cosines, whose sum is the score.
`unbalanced` (the code's COT, its default) lets patches stay unused; `sinkhorn` is plain entropic transport.

Differences: the code stops its iterations when the mean change over a batch is small, which makes a sample depend on the
others; here the number of iterations is fixed. A client that never took part has its initial local contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Param, Task, Values, option


@dataclass(frozen=True)
class Method(Base):
    """Shared and local class texts, matched with patches by optimal transport."""

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Li et al. 2024, arXiv 2403.00041"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    reads_patches: ClassVar[bool] = True

    transport: Literal["unbalanced", "sinkhorn"] = option(
        "unbalanced", "unbalanced: patches may stay unused if `mass` is below 1; sinkhorn: all are matched"
    )
    mass: Annotated[float, Field(gt=0, le=1)] = option(
        1.0,
        "mass of the plan, the code's top_percent",
        needs=("`transport: unbalanced`", lambda method: method.transport == "unbalanced"),
    )
    eps: Annotated[float, Field(gt=0)] = option(0.1, "entropic regularisation of the plan")
    iterations: Annotated[int, Field(ge=1)] = option(100, "iterations that compute the plan")

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` and ``local_context`` [P, D_text]."""
        return self.context_param(task) | self.context_param(task, "local_context", "local")

    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The slots ``context`` and ``local_context``."""
        return {"context": p["context"], "local_context": p["local_context"]}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled sums of cosines, weighed by the plan of each image and class."""
        text = torch.stack([p["text.context"], p["text.local_context"]])
        cosine = torch.einsum("bme,nce->bcmn", out["patches"], text)
        plan = self.plan(torch.exp((cosine.detach() - 1) / self.eps))
        scores: Tensor = p["logit_scale"] * (plan * cosine).sum((-2, -1))
        return scores

    def plan(self, kernel: Tensor) -> Tensor:
        """The plan [..., M, N] of a `kernel` [..., M, N], with uniform weights on both sides."""
        patches, texts = kernel.shape[-2:]
        mass = self.mass if self.transport == "unbalanced" else 1.0
        u, v = torch.ones_like(kernel[..., 0]), torch.ones_like(kernel[..., 0, :])
        for _ in range(self.iterations):
            u = 1 / (patches * (kernel * v[..., None, :]).sum(-1))
            if self.transport == "unbalanced":
                u = u.clamp(max=1)  # at most the weight of a patch
            v = mass / (texts * (kernel * u[..., None]).sum(-2))
        return u[..., None] * kernel * v[..., None, :]
