"""Which of timm's models can be a backbone, and why another one cannot."""

from __future__ import annotations

from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import VisionTransformer

from fedbench.vit.block_forward import has_plain_attention

SUPPORTED = (
    "timm's VisionTransformer, read at its CLS token (DeiT III, CLIP, DINOv2), by the mean of its patch tokens (MAE) or by "
    "attention pooling (SigLIP), and timm's Eva with pre-norm blocks, read at its CLS token or by that mean (DINOv3, EVA-02, "
    "rotary ViTs)"
)


def why_not(vit: Any) -> str | None:
    """Why a timm model cannot be a backbone; None if it can."""
    if type(vit) is Eva:
        return _why_not_eva(vit) or _why_not_patches(vit)
    if isinstance(vit, VisionTransformer) and getattr(vit, "dist_token", None) is not None:
        return "it has a distillation token beside CLS, and its prediction is the mean of two heads"
    if type(vit) is not VisionTransformer:
        return f"it is of the class {type(vit).__name__}"
    return _why_not_plain(vit) or _why_not_patches(vit)


def _why_not_plain(vit: VisionTransformer) -> str | None:
    """Why a `VisionTransformer` cannot be a backbone."""
    if vit.global_pool not in ("token", "avg", "map"):
        return f"its pooling is {vit.global_pool or 'none'!r}"
    if vit.global_pool == "map" and type(vit.attn_pool) is not AttentionPoolLatent:
        return f"its pooling is {type(vit.attn_pool).__name__}"
    if vit.global_pool != "token" and vit.pool_include_prefix:
        return "its pooling reads prefix tokens as well as patches"
    if vit.pos_embed is None:
        return "it has no absolute position embeddings"
    return None


def _why_not_eva(vit: Eva) -> str | None:
    """Why an `Eva` cannot be a backbone."""
    if vit.global_pool not in ("token", "avg"):
        return f"its pooling is {vit.global_pool or 'none'!r}"
    for block in vit.blocks:
        if type(block) is not EvaBlock:
            return f"its blocks are {type(block).__name__}, not timm's EvaBlock"
        if not has_plain_attention(block):
            return "its heads share keys and values (grouped-query attention)"
    if vit.pos_embed is None and vit.rope is None:
        return "it has no position embeddings"
    return None


def _why_not_patches(vit: Any) -> str | None:
    """Why a model's patches cannot be those of a backbone."""
    if type(vit.patch_embed) is not PatchEmbed:
        return f"its patches come from a separate network ({type(vit.patch_embed).__name__}), not from one projection"
    return None
