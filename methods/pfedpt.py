"""pFedPT: each client adds a private, trainable border to its images and trains the shared classifier on those.

Source: Li et al. 2024 (TMLR), arXiv 2303.08678 (paper and code; made for a CNN, so this is a port). Kept: the padding border
of the client, added to the pixels (it does not replace them) and never sent; border and classifier trained in turn, the
border first; the classifier averaged. Changed (ours): the paper trains and averages the whole CNN, here the backbone is a
frozen ViT and only its linear head is shared; the border is as wide as an eighth of the image unless told; it starts
at zero, where the code draws it from N(0, 1); it is added to the normalised image.

A client that never took part has no border yet: it sees the plain image, through the shared head. `finetune_epochs` trains
border and head.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Method as Base
from fedbench.method import Param, Phases, Task, Values, linear_head, option


@dataclass(frozen=True)
class Method(Base):
    """A local border of b pixels in four strips, a shared head; phase 0 trains the border, phase 1 the head."""

    border: Annotated[int, Field(ge=1)] | None = option(
        None, "b: width of the border in pixels of the backbone's input; an eighth of the image if not given"
    )
    border_lr_scale: Annotated[float, Field(gt=0)] = option(30.0, "factor on the learning rate of the border")

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Li et al. 2024, arXiv 2303.08678"
    phases: ClassVar[Phases | None] = (("border",), ("head",))

    def params(self, task: Task) -> dict[str, Param]:
        """border.top and border.bottom [3, b, S], border.left and border.right [3, S - 2b, b], and the head.

        Raises ValueError where the border leaves nothing of the image.
        """
        size = task.image_size
        b = self.border or max(1, size // 8)
        if 2 * b >= size:
            raise ValueError(f"pfedpt: border is {b}, but an image of {size} pixels has room for {(size - 1) // 2}")
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
