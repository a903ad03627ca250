"""pFedPT: each client adds a private, trainable border to its images, and trains the shared classifier on them.

Source: Li et al. 2024 (TMLR), arXiv 2303.08678 (paper and code; made for networks that are trained as a whole, so this is a
port). Kept: the client's border is added to the normalised pixels (it does not replace them) and never sent; border and
classifier are trained in turn, the border first; the classifier is averaged.

Changed (ours): the code trains and averages the whole network; here the backbone is a frozen ViT and only its linear head is
shared. The border is an eighth of the image wide by default (the code's 2 of 32 pixels: `border` at a 16th). It starts at
zero (the code draws it from N(0, 1)). Its rate is 30 times the head's by default; the code has 20 for the border and 0.05
for the network: `border_lr_scale: 400`. The code trains the border with momentum 0.5, kept between rounds, and the network
without momentum; here `local.momentum` is that of both, and starts anew every round.

A client that never took part has no border yet: it classifies the plain image with the shared head. `finetune_epochs`
trains border and head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Phases, PlannedTask, Task, Values, linear_head, option
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """A local border of b pixels in four strips and a shared head. Phase 0 trains the border, phase 1 the head."""

    border: Annotated[int, Field(ge=1)] | None = option(
        None, "b: width of the border in pixels of the backbone's input; default: an eighth of the image"
    )
    border_lr_scale: Annotated[float, Field(gt=0)] = option(30.0, "factor on the learning rate of the border")

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "border_lr_scale": {"log": (1.0, 1000.0)}}
    citation: ClassVar[str] = "Li et al. 2024, arXiv 2303.08678"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    phases: ClassVar[Phases | None] = (("border",), ("head",))

    def _border(self, size: int) -> int:
        return self.border or max(1, size // 8)

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """The border must leave something of the image."""
        border, size = self._border(task.image_size), task.image_size
        if 2 * border >= size:
            raise ValueError(f"border is {border}, but an image of {size} pixels has room for {(size - 1) // 2}")

    def params(self, task: Task) -> dict[str, Param]:
        """border.top and border.bottom [3, b, S], border.left and border.right [3, S - 2b, b], and the head."""
        size = task.image_size
        b = self._border(size)
        shapes = {
            "top": (3, b, size),
            "bottom": (3, b, size),
            "left": (3, size - 2 * b, b),
            "right": (3, size - 2 * b, b),
        }
        strips = {
            f"border.{side}": Param(torch.zeros(shape), "local", lr_scale=self.border_lr_scale)
            for side, shape in shapes.items()
        }
        return strips | linear_head(task)

    def pixels(self, p: Values, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] plus the border, which is zero inside."""
        left, right = p["border.left"], p["border.right"]  # [3, S - 2b, b]
        height, width = left.shape[1], p["border.top"].shape[2] - 2 * left.shape[2]
        middle = torch.cat([left, left.new_zeros(3, height, width), right], 2)  # [3, S - 2b, S]
        return images + torch.cat([p["border.top"], middle, p["border.bottom"]], 1)
