"""Central VPT: the upper reference without federation, VPT-shallow on the pooled data of all clients that train.

Source: Jia et al. 2022, arXiv 2203.12119 (paper; initialisation from the official code - code). Each round draws as many of
the pooled samples as a cohort of clients holds, and trains on them for `local.epochs` epochs, from where the last round
ended. The number of samples, the batch size and the learning rate are those of a federated run (ours). Momentum is reset
every round, as it is at clients.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedbench.method import Fidelity, Param, Task, linear_head
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """P prompt tokens after CLS at block 0 and a linear head, trained in one place."""

    family: ClassVar[str] = "reference"
    reference: ClassVar[bool] = True
    centralized: ClassVar[bool] = True
    citation: ClassVar[str] = "Jia et al. 2022, arXiv 2203.12119"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head."""
        return self.prompt_param(task) | linear_head(task)
