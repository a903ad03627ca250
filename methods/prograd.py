"""ProGrad's loss with FedAvg: PromptFL with a term that keeps the class scores near those of zero-shot CLIP.

Source: Zhu et al., ICCV 2023, arXiv 2205.14865, in the form of FLiP (https://github.com/0-ml/flip,
flcore/models/clip/ProGrad.py): the loss is the cross entropy plus weight * T^2 * the cross entropy of zero-shot CLIP's soft
answers at temperature T. The paper adds no term; where the gradients of the two losses disagree, it removes the part of
the first that opposes the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Values, cosine_logits, option


@dataclass(frozen=True)
class Method(Base):
    """Averaged context vectors, whose class scores stay near those of zero-shot CLIP."""

    citation: ClassVar[str] = "Zhu et al. 2023, arXiv 2205.14865"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    search: ClassVar = {**Base.search, "pull": {"log": (0.01, 10.0)}}

    pull: Annotated[float, Field(ge=0)] = option(1.0, "weight of the distance to the scores of zero-shot CLIP")
    temperature: Annotated[float, Field(gt=0)] = option(1.0, "T: both scores are divided by it")

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """The cross entropy [B] of zero-shot CLIP's soft answers, times T^2."""
        teacher = cosine_logits(p, out, p["class_text"]) / self.temperature
        student = out["logits"] / self.temperature
        return -self.pull * self.temperature**2 * (teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
