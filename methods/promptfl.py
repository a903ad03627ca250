"""PromptFL: clients train the context vectors of CLIP's class texts, and the server averages them (CoOp with FedAvg).

Source: Guo et al., IEEE TMC 2023, arXiv 2208.11625; official code https://github.com/PEILab-Federated-Learning/PromptFL
(trainers/promptfl.py): context vectors ~ N(0, 0.02^2) between the start token and "name.", the scaled cosine of normalised
image and text features as class scores, and FedAvg of the contexts. As there, the image encoder sees no prompt. Here its
features are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Param, PlannedTask, Task, option


@dataclass(frozen=True)
class Method(Base):
    """Context vectors of CLIP's text tower, averaged over clients."""

    citation: ClassVar[str] = "Guo et al. 2023, arXiv 2208.11625"
    fidelity: ClassVar[Fidelity] = "exact port"

    per_class: bool = option(False, "every class has context vectors of its own (CoOp's class-specific contexts)")

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Contexts of a class that nobody trains do not exist."""
        if self.per_class and run["clients"]["novel"]:
            raise ValueError("per_class has no context vectors for the classes of clients.novel, which nobody trains")

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` [P, D_text], or [C, P, D_text] with `per_class`."""
        if not self.per_class:
            return self.context_param(task)
        start = task.normal("context", task.num_classes, self.context_length, task.text_width, std=0.02)
        return {"context": Param(start)}
