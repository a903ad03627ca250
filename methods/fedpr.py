"""FedPR: deep prompts whose local updates leave alone the directions that the global prompts already use.

Source: Feng et al., CVPR 2023, arXiv 2303.16181, made for MRI reconstruction on a Swin Transformer: a port. Kept (code):
prompts at every block, averaged; after aggregation the SVD of P^T P in each block, the leading 20 % of its D directions
dropped, V of the others; each step of the local optimiser times V V^T / ||V V^T||_F.

What differs (ours). P prompts have rank P at most, so where .2 D > P the rest of what the code drops is an arbitrary choice
within the null space, and its projector is not unique: here only directions that P has are dropped, min(.2 D, P) of them.
The norm makes steps about sqrt(D) times smaller: that is what `prompt_lr_scale` is for (the code: Adam at .1 on prompts from
U(0, 1); here VPT's initial prompts and the run's optimiser, whose state does not outlive a round). The first round has
nothing to leave alone: the code takes its steps unscaled, here they are scaled as later. A trained, averaged linear head
stands in for the frozen decoder. The directions are sent and counted, although a client could find them itself; with an
aggregation other than FedAvg they are those of the average, which it steps towards.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Param, Task, Values, linear_head, option, tokens
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """P prompt tokens at each of the L blocks, trained in the null space of the global ones, and a linear head."""

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: prompt tokens at every block")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(
        10.0, "factor on the learning rate of the prompts, against the norm of the projector"
    )
    drop: Annotated[float, Field(ge=0, lt=1)] = option(0.2, "share of the D directions that updates leave alone")

    family: ClassVar[str] = "grouped"
    citation: ClassVar[str] = "Feng et al. 2023 (CVPR), arXiv 2303.16181"

    def layers(self, depth: int) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(depth))

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [L, P, D], the head, and the directions to leave alone, rows of leading [L, r, D]; zero: none yet."""
        start = task.prompt_init("prompt", task.depth, self.prompt_length, task.width)
        dropped = min(int(self.drop * task.width), self.prompt_length)
        return {
            "prompt": Param(start, lr_scale=self.prompt_lr_scale),
            **linear_head(task),
            "leading": Param(torch.zeros(task.depth, dropped, task.width), "server"),
        }

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """Block `layer`'s own tokens take the place of the last block's."""
        return {"prompt": tokens(p["prompt"][layer], cls)}

    def steer(self, p: Values, step: Values) -> dict[str, Tensor]:
        """The step of the prompts times V V^T / ||V V^T||_F, with V V^T = I - U^T U, U the leading directions."""
        u, move = p["leading"], step["prompt"]  # [L, r, D], [L, P, D]
        norm = (u.shape[-1] - u.square().sum((1, 2), keepdim=True)).sqrt()  # of a projector: the root of its rank
        return {"prompt": (move - move @ u.mT @ u) / norm}

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The leading right singular vectors of the averaged prompts: the leading eigenvectors of P^T P."""
        got = updates.updated["prompt"]  # [K, L, P, D]
        mean = torch.tensordot((updates.num_samples / updates.num_samples.sum()).double(), got.double(), dims=1)
        directions = torch.linalg.svd(mean, full_matrices=False).Vh  # [L, min(P, D), D]
        return {"leading": directions[:, : server["leading"].shape[1]].to(got)}
