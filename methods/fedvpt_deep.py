"""VPT-deep with FedAvg: new prompt tokens at every block, which replace those of the block before.

Source: Jia et al. 2022, arXiv 2203.12119 (paper and code, for the prompts and their initialisation); averaging as FedVPT-D in
pFedPG, Yang et al. 2023 (paper).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, linear_head, option, tokens
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """P prompt tokens at each of the L blocks and a linear head, all averaged."""

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: prompt tokens at every block")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of the prompts")

    search: ClassVar = {**Base.search, "prompt_lr_scale": {"log": (0.1, 100.0)}}
    citation: ClassVar[str] = "Jia et al. 2022, arXiv 2203.12119"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def layers(self, depth: int) -> tuple[int, ...]:
        """Every block."""
        return tuple(range(depth))

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [L, P, D] and the head."""
        start = task.prompt_init("prompt", task.depth, self.prompt_length, task.width)
        return {"prompt": Param(start, lr_scale=self.prompt_lr_scale)} | linear_head(task)

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The tokens of block `layer`, which replace those of the block before."""
        return {"prompt": tokens(p["prompt"][layer], cls)}
