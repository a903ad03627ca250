"""Central VPT: the upper reference without federation, VPT-shallow on the pooled data of all clients that train.

Source: Jia et al. 2022, arXiv 2203.12119 (paper; initialisation from the official code - code). A round draws as many of the
pooled samples as a cohort of clients holds and trains `local.epochs` epochs on them, from where the last round ended: the
samples seen, the steps' batch size and the learning rate are those of a federated run (ours). Momentum starts anew each
round, as it does at clients.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Method as Base
from fedbench.method import Param, Task, Values, linear_head, option, tokens


@dataclass(frozen=True)
class Method(Base):
    """P prompt tokens after CLS at block 0 and a linear head, trained in one place."""

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: prompt tokens at the input of the first block")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of the prompts")

    family: ClassVar[str] = "reference"
    reference: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    citation: ClassVar[str] = "Jia et al. 2022, arXiv 2203.12119"

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block."""
        return (0,)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head."""
        start = task.prompt_init("prompt", self.prompt_length, task.width)
        return {"prompt": Param(start, lr_scale=self.prompt_lr_scale)} | linear_head(task)

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The same tokens for every sample."""
        return {"prompt": tokens(p["prompt"], cls)}
