"""PEP-FedPT on CLIP: shared prompts and mixed class prompts in the image tower, and CLIP's class texts as the classifier.

Source: arXiv 2510.25372 (TMLR 2026) for the prompts, which are those of `pep_fedpt` with all its options and controls. The
classifier is that of zero-shot CLIP (Radford et al., ICML 2021, arXiv 2103.00020) in place of a trained head (ours). Queries
and prototypes are CLS features of the image tower before its projection into the space of the texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedbench.method import ClassPrompt as Base
from fedbench.method import Param, PlannedTask, Task, Values, cosine_logits


@dataclass(frozen=True)
class Method(Base):
    """Prompts of PEP-FedPT in the image tower, and class scores that are cosines with the template's texts."""

    citation: ClassVar[str] = "arXiv 2510.25372; Radford et al. 2021, arXiv 2103.00020"
    reads_text: ClassVar[bool] = True

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Block `inject` must exist, and prompts of a class that nobody trains do not."""
        super().check(task, run)
        if run["clients"]["novel"]:
            raise ValueError("it has no class prompts for the classes of clients.novel, which nobody trains")

    def head_params(self, task: Task) -> dict[str, Param]:
        """Nothing: class texts are frozen."""
        return {}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled cosines of images and class texts."""
        return cosine_logits(p, out, p["class_text"])
