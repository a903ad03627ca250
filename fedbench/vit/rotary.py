"""Rotary position embeddings of timm's `Eva` models, such as DINOv3: the sines and cosines that rotate patch tokens."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor


class Rotary:
    """The rotations of the patches of the model `vit`. Those of frozen values are computed once.

    ``rotates``: whether the model has any.
    """

    def __init__(self, vit: Any) -> None:
        self.vit = vit
        self.rotates = getattr(vit, "rope", None) is not None
        self._computed: tuple[Tensor, torch.device, torch.dtype, Tensor] | None = None

    def positioned(self, patches: Tensor) -> Tensor:
        """The tokens [N, T, D] that timm's ``_pos_embed`` makes of embedded patches, without computing rotations.

        timm computes them on the host in every pass, for which a GPU would wait.
        """
        if not isinstance(self.vit, Eva):
            tokens: Tensor = self.vit._pos_embed(patches)
            return tokens
        bare = copy.copy(self.vit)  # shares all tensors
        bare._modules = self.vit._modules | {"rope": None}
        tokens, _ = bare._pos_embed(patches)
        return tokens

    def of_block(self, layer: int) -> Tensor | None:
        """The sines and cosines [N', 2 D/heads], or [heads, N', 2 D/heads], of block `layer`; None without rotation."""
        if not self.rotates:
            return None
        rotations = self._rotations()
        return rotations[layer] if self.vit.rope_mixed else rotations

    def _rotations(self) -> Tensor:
        """The rotations of all blocks, from learnt frequencies or fixed periods."""
        rope = self.vit.rope
        source = next(itertools.chain(rope.parameters(), rope.buffers()))  # a method may have replaced it
        if source.requires_grad:
            return _as_timm(self.vit)
        known = self._computed
        if known is None or known[0] is not source or known[1:3] != (source.device, source.dtype):
            with torch.inference_mode(False), torch.no_grad():
                known = (source, source.device, source.dtype, _as_timm(self.vit))
            self._computed = known
        return known[3]


def _as_timm(vit: Any) -> Tensor:
    """As timm's ``Eva._pos_embed`` computes them for images of the model's size."""
    is_static = not vit.dynamic_img_size and hasattr(vit.rope, "feat_shape")
    rotations: Tensor = vit.rope.get_embed() if is_static else vit.rope.get_embed(shape=vit.patch_embed.grid_size)
    return rotations
