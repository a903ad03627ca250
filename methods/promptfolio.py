"""PromptFolio: class texts are mixtures of those behind averaged contexts and those behind the client's own contexts.

Source: Pan et al., NeurIPS 2024, arXiv 2409.19610; official code https://github.com/PanBikang/PromptFolio, in the form of
FLiP (https://github.com/0-ml/flip, flcore/models/clip/PromptFolio.py): (1 - theta) * shared + theta * local, each of length 1
before the mixture, and both trained together. A client that never took part has its initial local contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Param, Task, Values, cosine_logits, option


@dataclass(frozen=True)
class Method(Base):
    """A mixture of shared and local class texts."""

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Pan et al. 2024, arXiv 2409.19610"
    fidelity: ClassVar[Fidelity] = "exact port"
    search: ClassVar = {**Base.search, "theta": {"linear": (0.0, 1.0)}}

    theta: Annotated[float, Field(ge=0, le=1)] = option(0.2, "share of the client's own texts in the mixture")

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` and ``local_context`` [P, D_text]."""
        return self.context_param(task) | self.context_param(task, "local_context", "local")

    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The slots ``context`` and ``local_context``."""
        return {"context": p["context"], "local_context": p["local_context"]}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled products of images and mixtures."""
        text = (1 - self.theta) * p["text.context"] + self.theta * p["text.local_context"]
        return cosine_logits(p, out, text)
