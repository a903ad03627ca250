"""Full fine-tuning: FedAvg of the whole network, that is every tensor of the backbone and a linear head.

Source: McMahan et al. 2017, arXiv 1602.05629 (paper). The reference to which prompts are an alternative: it trains and sends
everything. Each client has its own backbone in memory and its own pass, so it is slow, and a cohort needs memory for about
(3 + optimizer state) copies of the weights.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, linear_head, option
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """All of the backbone's tensors and the head, averaged."""

    backbone_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of the backbone")

    family: ClassVar[str] = "reference"
    reference: ClassVar[bool] = True
    search: ClassVar = {**Base.search, "backbone_lr_scale": {"log": (0.01, 10.0)}}
    citation: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    fidelity: ClassVar[Fidelity] = "exact port"

    def params(self, task: Task) -> dict[str, Param]:
        """Every pre-trained tensor of the backbone by its name, and the head."""
        start = {name: Param(value.detach(), lr_scale=self.backbone_lr_scale) for name, value in task.frozen.items()}
        return start | linear_head(task)

    def backbone_weights(self, p: Values, frozen: Values) -> dict[str, Tensor]:
        """The client's own tensors in place of the frozen ones."""
        return {name: p[name] for name in frozen}
