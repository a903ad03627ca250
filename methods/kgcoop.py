"""KgCoOp with FedAvg: PromptFL with a loss that keeps the learned class texts near those of a hand-written template.

Source: Yao et al., CVPR 2023, arXiv 2303.13283; official code https://github.com/htyao89/KgCoOp: the term
weight * (1 - mean over classes of cos(learned text, template's text)) with weight 8. Contexts start at random here; the
official code starts from the words "a photo of a". FLiP (https://github.com/0-ml/flip, flcore/models/clip/KgCoOp.py) averages
the contexts over clients in the same way, with weight 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Values, option


@dataclass(frozen=True)
class Method(Base):
    """Averaged context vectors, whose class texts stay near those of the template."""

    citation: ClassVar[str] = "Yao et al. 2023, arXiv 2303.13283"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    search: ClassVar = {**Base.search, "pull": {"log": (0.1, 100.0)}}

    pull: Annotated[float, Field(ge=0)] = option(8.0, "weight of the distance between learned and hand-written texts")

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """The mean cosine distance of the texts of all classes, a scalar."""
        cosine = (p["text.context"] * p["class_text"]).sum(-1)
        return self.pull * (1 - cosine.mean())
