"""VPT-shallow as a base class for methods that differ only in who trains the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fedbench.base.options import option
from fedbench.method.building_blocks import tokens
from fedbench.method.method import Method
from fedbench.method.param import Home, Param, Values
from fedbench.method.task import Task


@dataclass(frozen=True)
class InputPrompt(Method):
    """P prompt tokens after CLS at the input of the first block, the same for every sample: VPT-shallow.

    Source: Jia et al. 2022, arXiv 2203.12119, equation 4.
    """

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: prompt tokens at the input of the first block")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of the prompts")

    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
        **Method.search,
        "prompt_lr_scale": {"log": (0.1, 100.0)},
    }

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block."""
        return (0,)

    def prompt_param(self, task: Task, home: Home = "shared") -> dict[str, Param]:
        """The parameter ``prompt`` [P, D] with its initial values."""
        start = task.prompt_init("prompt", self.prompt_length, task.width)
        return {"prompt": Param(start, home, lr_scale=self.prompt_lr_scale)}

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The same tokens for every sample."""
        return {"prompt": tokens(p["prompt"], cls)}
