"""Zero-shot CLIP: class scores are cosines of the image and a text with each class name. Nothing is trained or sent.

Source: Radford et al., ICML 2021, arXiv 2103.00020, section 3.1.2. The backbone's `template` makes a text of a class name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, cosine_logits
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """CLIP's own classifier: the features of a text for each class."""

    family: ClassVar[str] = "training-free"
    citation: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"
    fidelity: ClassVar[Fidelity] = "exact port"
    reference: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {}

    def params(self, task: Task) -> dict[str, Param]:
        """Nothing."""
        return {}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled cosines of images and class texts."""
        return cosine_logits(p, out, p["class_text"])
