"""FedPR: deep prompts whose local updates stay out of the directions that the global prompts already use.

Source: Feng et al., CVPR 2023, arXiv 2303.16181, made for MRI reconstruction with a Swin Transformer: a port. Kept (code):
averaged prompts at every block; after aggregation the SVD of P^T P in each block, of whose D directions the leading 20 %
are dropped and the others are V; each step of the local optimizer is multiplied by V V^T / ||V V^T||_F.

Ours, where we depart from the code:

* P prompts have rank P at most. If 0.2 D > P, the rest of what the code drops is an arbitrary part of the null space, so
  its projector is not unique. Here only directions that P has are dropped, min(0.2 D, P) of them.
* The code truncates int(D (1.0 - 0.8)), which rounding makes 3 for D = 20; here int(`drop` D) is 4. A slightly smaller
  `drop` gives the code's number.
* The code computes directions for the clients of a round only, so a client that was absent uses those of its last round, and
  none in its first. Here every client uses those of the last aggregation.
* The norm makes steps about sqrt(D) times smaller, which `prompt_lr_scale` makes up for. (The code uses Adam at 0.1 on
  prompts from U(0, 1); here prompts start as VPT's, and the run's optimizer is reset every round.)
* In the first round nothing is dropped. The code then takes unscaled steps; here they are scaled as in later rounds.
* A trained, averaged linear head replaces the frozen decoder.
* The server sends the directions, and they count as traffic, although a client could compute them. With another
  aggregation than FedAvg they are the directions of the average that it steps towards.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Fidelity, Param, Task, Values, linear_head, option, tokens
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """P prompt tokens at each of the L blocks, trained in the null space of the global ones, and a linear head."""

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: prompt tokens at every block")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(
        10.0, "factor on the learning rate of the prompts, which makes up for the norm of the projector"
    )
    drop: Annotated[float, Field(ge=0, lt=1)] = option(
        0.2, "share of the D directions that updates stay out of; of these, the `prompt_length` leading ones are known"
    )

    family: ClassVar[str] = "grouped"
    search: ClassVar = {**Base.search, "prompt_lr_scale": {"log": (1.0, 1000.0)}}
    citation: ClassVar[str] = "Feng et al. 2023 (CVPR), arXiv 2303.16181"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def layers(self, depth: int) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(depth))

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [L, P, D], the head, and the dropped directions as rows of leading [L, r, D]; zero: none yet."""
        start = task.prompt_init("prompt", task.depth, self.prompt_length, task.width)
        dropped = min(int(self.drop * task.width), self.prompt_length)
        return {
            "prompt": Param(start, lr_scale=self.prompt_lr_scale),
            **linear_head(task),
            "leading": Param(torch.zeros(task.depth, dropped, task.width), "server"),
        }

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The tokens of block `layer`, which replace those of the block before."""
        return {"prompt": tokens(p["prompt"][layer], cls)}

    def steer(self, p: Values, step: Values) -> dict[str, Tensor]:
        """The step of the prompts times V V^T / ||V V^T||_F, with V V^T = I - U^T U, U the leading directions."""
        u, move = p["leading"], step["prompt"]  # [L, r, D], [L, P, D]
        norm = (u.shape[-1] - u.square().sum((1, 2), keepdim=True)).sqrt()  # of a projector: the root of its rank
        return {"prompt": (move - move @ u.mT @ u) / norm}

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The leading right singular vectors of the averaged prompts: the leading eigenvectors of P^T P.

        An eigenvector's sign is arbitrary and does not affect `steer`. Here its largest component is positive, on every device.
        """
        updated = updates.updated["prompt"]  # [K, L, P, D]
        mean = torch.tensordot(updates.share.double(), updated.double(), dims=1)
        directions = torch.linalg.svd(mean, full_matrices=False).Vh  # [L, min(P, D), D]
        largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))  # [L, min(P, D), 1]
        return {"leading": (directions * largest.sign())[:, : server["leading"].shape[1]].to(updated)}
