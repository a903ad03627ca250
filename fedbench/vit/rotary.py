"""Rotary position embeddings of timm's `Eva` models, such as DINOv3: the sines and cosines that rotate patch tokens."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor


class Rotary:
    """The rotations of the patches of the model `vit`. Fixed ones are computed once for each device and precision.

    ``rotates``: whether the model has any.
    """

    def __init__(self, vit: Any) -> None:
        self.rotates = getattr(vit, "rope", None) is not None
        self._is_fixed = self.rotates and not list(vit.rope.parameters())
        self._fixed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def positioned(self, vit: Any, patches: Tensor) -> Tensor:
        """The tokens [N, T, D] that timm's ``_pos_embed`` makes of embedded patches, without computing rotations.

        timm computes them on the host in every pass, for which a GPU would wait.
        """
        if not isinstance(vit, Eva):
            tokens: Tensor = vit._pos_embed(patches)
            return tokens
        bare = copy.copy(vit)  # shares all tensors
        bare._modules = vit._modules | {"rope": None}
        tokens, _ = bare._pos_embed(patches)
        return tokens

    def of_block(self, vit: Any, layer: int) -> Tensor | None:
        """The sines and cosines [N', 2 D/heads], or [heads, N', 2 D/heads], of block `layer`; None without rotation."""
        if not self.rotates:
            return None
        if not self._is_fixed:  # learnt frequencies, which a method may replace
            rotations = _computed(vit)
            return rotations[layer] if vit.rope_mixed else rotations
        buffer = next(vit.rope.buffers())
        key = (buffer.device, buffer.dtype)
        if key not in self._fixed:
            with torch.inference_mode(False), torch.no_grad():
                self._fixed[key] = _computed(vit)
        return self._fixed[key]


def _computed(vit: Any) -> Tensor:
    """As timm's ``Eva._pos_embed`` computes them for images of the model's size."""
    is_static = not vit.dynamic_img_size and hasattr(vit.rope, "feat_shape")
    rotations: Tensor = vit.rope.get_embed() if is_static else vit.rope.get_embed(shape=vit.patch_embed.grid_size)
    return rotations
