"""How a frozen Vision Transformer is read: at its CLS token, by the mean of its patch tokens, or by attention pooling.

These are timm's ``global_pool`` "token", "avg" and "map". The tokens of a pass are CLS, the prompt slots, registers and
patches, in this order; a model without a CLS token begins with the slots. The mean and attention pooling read the patches
alone: neither prompts nor other prefix tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ReadoutError(ValueError):
    """A model cannot be read in the requested way. The message says why."""


class Readout:
    """How the model `vit` is read. ``first_slot``: the number of tokens before the prompt slots, 1 (CLS) or 0."""

    def __init__(self, vit: Any) -> None:
        self.vit = vit
        self.pool: str = vit.global_pool
        self.at_cls = self.pool == "token"
        self.first_slot = 0 if vit.cls_token is None else 1
        self.registers = int(vit.num_prefix_tokens) - self.first_slot
        self.patches = int(vit.patch_embed.num_patches)

    def feature(self, cls: Tensor, patches: Tensor | None) -> Tensor:
        """The feature [N, D] that timm's head reads, from CLS [N, 1 or 0, D] and the patches [N, N', D] after the last norm."""
        if self.at_cls or patches is None:
            pooled = cls[:, 0]
        else:
            pooled = patches.mean(1) if self.pool == "avg" else self.vit.attn_pool(patches)
        feature: Tensor = self.vit.fc_norm(pooled)
        return feature

    def summary(self, tokens: Tensor) -> Tensor:
        """What stands for the image between blocks, from `tokens` [N, T, D]: CLS [N, D], or the mean of the patches [N, D].

        CLS if the model is read there. Otherwise the mean, also for attention pooling, which fits the last block alone.
        """
        return tokens[:, 0] if self.at_cls else tokens[:, -self.patches :].mean(1)

    def summary_feature(self, tokens: Tensor) -> Tensor:
        """`summary` [N, D] with the model's final norm, before or after the mean as the model has it."""
        if self.at_cls:
            tokens = tokens[:, :1]  # the norm of other tokens is not needed
        feature: Tensor = self.vit.fc_norm(self.summary(self.vit.norm(tokens)))
        return feature


def set_pool(vit: Any, pool: str) -> None:
    """Let `vit` be read at its CLS token ("token") or by the mean of its patch tokens ("avg"). Its norms stay as they are.

    Raises ReadoutError if it has no CLS token.
    """
    if pool == "token" and vit.cls_token is None:
        raise ReadoutError("it has no CLS token; leave `pool` out, or use `pool: avg`")
    vit.global_pool, vit.attn_pool = pool, None


def move_norm_behind_pool(vit: Any) -> None:
    """Give a model of the form of timm's ``fc_norm=False`` the form of ``fc_norm=True``: its final norm follows the mean."""
    if isinstance(vit.fc_norm, nn.Identity):
        vit.norm, vit.fc_norm = vit.fc_norm, vit.norm
