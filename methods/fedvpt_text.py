"""VPT on CLIP: prompts in the image tower and CLIP's class texts as the classifier, with or without context vectors.

Source: prompts of the image tower as in Jia et al., ECCV 2022, arXiv 2203.12119 (VPT-shallow); with `context_length` > 0, both
towers have prompts of their own, which is independent vision-language prompting (Rasheed et al., CVPR 2023, arXiv
2212.03640, with prompts at the input only). All prompts are averaged over clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, cosine_logits, only_if, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Averaged prompts of the image tower, and class scores that are cosines with class texts."""

    citation: ClassVar[str] = "Jia et al. 2022, arXiv 2203.12119; Rasheed et al. 2023, arXiv 2212.03640"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    reads_text: ClassVar[bool] = True

    context_length: Annotated[int, Field(ge=0)] = option(
        0, "context vectors before a class name; 0: none, and class texts are those of the template"
    )

    def params(self, task: Task) -> dict[str, Param]:
        """``prompt`` [P, D], and ``context`` [P', D_text] if there are context vectors."""
        params = self.prompt_param(task)
        if self.context_length:
            start = task.normal("context", self.context_length, task.text_width, std=0.02)
            params["context"] = Param(start)
        return params

    @only_if(lambda method: method.context_length > 0)
    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The slot ``context``."""
        return {"context": p["context"]}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled cosines of images and class texts."""
        return cosine_logits(p, out, p["text.context"] if self.context_length else p["class_text"])
