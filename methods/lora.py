"""LoRA with FedAvg: low-rank updates of the attention's projections, the parameter-efficient alternative to prompts.

Source: Hu et al. 2021, arXiv 2106.09685 (paper): W = W_0 + (alpha/r) B A at the query and value projections of every block,
A Gaussian, B = 0. The standard deviation of A is 1/sqrt(D) (ours). A and B are averaged separately, as federated LoRA
usually does (FedIT, Zhang et al. 2023, arXiv 2305.05644 - paper), although the mean of the products B A differs from the
product of the means. The clients' weights differ, so each client has its own pass of the backbone: slower than prompts,
which share one.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, linear_head, option
from fedbench.method import Method as Base

NAME = "vit.blocks.{}.attn.qkv.weight"
PARTS = {"qv": (0, 2), "qkv": (0, 1, 2)}  # of timm's joint projection, [q; k; v] by rows


@dataclass(frozen=True)
class Method(Base):
    """Rank-r updates at every block and a linear head, all averaged."""

    rank: Annotated[int, Field(ge=1)] = option(4, "r: rank of each update", always_shown=True)
    alpha: Annotated[float, Field(gt=0)] = option(8.0, "alpha: updates are scaled by alpha/r")
    target: Literal["qv", "qkv"] = option("qv", "updated projections: query and value, or also key")
    lora_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of A and B")

    family: ClassVar[str] = "reference"
    reference: ClassVar[bool] = True
    search: ClassVar = {**Base.search, "lora_lr_scale": {"log": (0.1, 100.0)}, "alpha": {"log": (1.0, 64.0)}}
    citation: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def params(self, task: Task) -> dict[str, Param]:
        """A [L, J, r, D] and B [L, J, D, r] for the J projections of a block, and the head."""
        if NAME.format(0) not in task.frozen:
            raise ValueError("the backbone has no joint projection of queries, keys and values; use one that has")
        shape, r, width = (task.depth, len(PARTS[self.target])), self.rank, task.width
        return {
            "A": Param(task.normal("A", *shape, r, width, std=width**-0.5), lr_scale=self.lora_lr_scale),
            "B": Param(torch.zeros(*shape, width, r), lr_scale=self.lora_lr_scale),
            **linear_head(task),
        }

    def backbone_weights(self, p: Values, frozen: Values) -> dict[str, Tensor]:
        """W_0 + (alpha/r) B A in the rows of q and v (and k) of every block."""
        update = self.alpha / self.rank * p["B"] @ p["A"]  # [L, J, D, D]
        made = {}
        for block, rows in enumerate(update):
            name = NAME.format(block)
            parts = list(frozen[name].chunk(3))
            for part, row in zip(PARTS[self.target], rows, strict=True):
                parts[part] = parts[part] + row
            made[name] = torch.cat(parts)  # [3D, D]
        return made
