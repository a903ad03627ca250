"""PromptFL: clients train the context vectors of CLIP's class texts, and the server averages them (CoOp with FedAvg).

Source: Guo et al., IEEE TMC 2023, arXiv 2208.11625; official code https://github.com/PEILab-Federated-Learning/PromptFL
(trainers/promptfl.py): context vectors ~ N(0, 0.02^2) between the start token and "name.", the scaled cosine of normalised
image and text features as class scores, and FedAvg of the contexts. As there, the image encoder sees no prompt. Here its
features are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, cosine_logits, option
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """Context vectors of CLIP's text tower, averaged over clients; class scores are cosines."""

    citation: ClassVar[str] = "Guo et al. 2023, arXiv 2208.11625"
    fidelity: ClassVar[Fidelity] = "exact port"
    reads_text: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {"local.lr": {"log": (0.0001, 1.0)}}

    context_length: Annotated[int, Field(ge=1)] = option(16, "P: context vectors before a class name")
    per_class: bool = option(False, "every class has context vectors of its own (CoOp's class-specific contexts)")

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` [P, D_text] or [C, P, D_text] ~ N(0, 0.02^2)."""
        shape = ((task.num_classes,) if self.per_class else ()) + (self.context_length, task.text_width)
        return {"context": Param(task.normal("context", *shape, std=0.02))}

    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The one slot ``context``."""
        return {"context": p["context"]}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled cosines of images and class texts."""
        return cosine_logits(p, out, p["text.context"])
