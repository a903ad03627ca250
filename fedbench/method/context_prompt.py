"""CoOp as a base class for methods that differ only in who trains the context vectors and with which loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.base.options import option
from fedbench.method.building_blocks import cosine_logits
from fedbench.method.method import Method
from fedbench.method.param import Home, Param, Values
from fedbench.method.task import Task


@dataclass(frozen=True)
class ContextPrompt(Method):
    """P context vectors before the class names in CLIP's text tower; class scores are scaled cosines: CoOp.

    Source: Zhou et al., IJCV 2022, arXiv 2109.01134; initial vectors ~ N(0, 0.02^2), as in the official code.
    """

    reads_text: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {"local.lr": {"log": (0.0001, 1.0)}}

    context_length: Annotated[int, Field(ge=1)] = option(16, "P: context vectors before a class name")

    def context_param(self, task: Task, name: str = "context", home: Home = "shared") -> dict[str, Param]:
        """The parameter `name` [P, D_text] with its initial values."""
        return {name: Param(task.normal(name, self.context_length, task.text_width, std=0.02), home)}

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` [P, D_text]."""
        return self.context_param(task)

    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The slot ``context``."""
        return {"context": p["context"]}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scaled cosines of images and class texts."""
        return cosine_logits(p, out, p["text.context"])
