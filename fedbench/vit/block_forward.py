"""The forward pass of one frozen block: all of its tokens or the first ones only, with prefixes of its keys and values.

It computes timm's `Block` and timm's `EvaBlock`. The latter may rotate the queries and keys of patch tokens (rotary position
embedding); CLS, prompts, registers and prefixes stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# From the normalised tokens [N, T, D] that enter attention to what joins its keys and values, see `Method.prefixes`.
Prefixes = Callable[[Tensor], Mapping[str, Tensor]]


def has_plain_attention(block: nn.Module) -> bool:
    """Whether `leading` computes the block: timm's `Block` or `EvaBlock` with its attention, whatever its norms or scales."""
    attn = getattr(block, "attn", None)
    if type(block) is EvaBlock:
        return type(attn) is EvaAttention or (type(attn) is AttentionRope and attn.num_kv_groups == 1)
    return type(block) is Block and type(attn) is Attention


def whole(block: Any, x: Tensor, count: int | None = None) -> Tensor:
    """``block(x)``, or its first `count` tokens."""
    result: Tensor = block(x)
    return result[:, :count]


def leading(
    block: Any, x: Tensor, count: int | None = None, rope: Tensor | None = None, prefixes: Prefixes | None = None
) -> Tensor:
    """The first `count` tokens (None: all) of ``block(x)`` for a block with plain attention: x [N, T, D] -> [N, count, D].

    Keys and values are computed for all tokens; queries, projection and MLP for the first `count` only. `rope` [R, 2 D/heads],
    or [heads, R, 2 D/heads], holds the sines and cosines by which the last R tokens are rotated. `prefixes` returns
    ``added_keys`` and ``added_values`` [N, T, D], which are added to the keys and values of the tokens, and ``keys`` and
    ``values`` [N, P, D], which every query sees beside them; each pair may be absent.
    """
    attn = block.attn
    y, heads = block.norm1(x), attn.num_heads
    n, count = len(y), x.shape[1] if count is None else count
    q, k, v = _projections(attn, y, count)
    width = q.shape[-1]
    made = {} if prefixes is None else {name: value.to(k.dtype) for name, value in prefixes(y).items()}
    if "added_keys" in made:
        k, v = k + made["added_keys"], v + made["added_values"]
    q, k, v = (_heads(z, heads) for z in (q, k, v))
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        unrotated = x.shape[1] - rope.shape[-2]
        q, k = (_rotated(z, unrotated, rope, attn.rotate_half).type_as(v) for z in (q, k))
    if "keys" in made:
        k, v = (torch.cat([_heads(made[name], heads), z], dim=2) for name, z in (("keys", k), ("values", v)))
    z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, width)
    z = attn.norm(z)
    if attn.gate is not None:
        z = z * attn.gate(y[:, :count]).sigmoid()
    x = x[:, :count] + _scaled(block, 1, attn.proj(z))
    result: Tensor = x + _scaled(block, 2, block.mlp(block.norm2(x)))
    return result


def _projections(attn: Any, y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [N, count, D] of the first `count` tokens of y [N, T, D], and keys and values [N, T, D] of all."""
    if attn.qkv is None:
        return attn.q_proj(y[:, :count]), attn.k_proj(y), attn.v_proj(y)
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:  # EVA's keys have no bias, or a bias of zeros
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    width = len(weight) // 3
    q = F.linear(y[:, :count], weight[:width], None if bias is None else bias[:width])
    k, v = F.linear(y, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    return q, k, v


def _heads(z: Tensor, heads: int) -> Tensor:
    """[N, T, D] -> [N, heads, T, D/heads]."""
    return z.view(len(z), -1, heads, z.shape[-1] // heads).transpose(1, 2)


def _rotated(z: Tensor, unrotated: int, rope: Tensor, half: bool) -> Tensor:
    """z [N, heads, T, D/heads] with all but the first `unrotated` tokens rotated by the first rows of `rope`."""
    patches = z.shape[2] - unrotated
    if patches <= 0:
        return z
    rotated = apply_rot_embed_cat(z[:, :, unrotated:], rope[..., :patches, :], half=half)
    return torch.cat([z[:, :, :unrotated], rotated], dim=2)


def _scaled(block: Any, part: int, z: Tensor) -> Tensor:
    """What attention (`part` 1) or the MLP (2) adds to the tokens, times the block's layer scale if it has one."""
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{part}")
        return z if gamma is None else gamma * z
    scaled: Tensor = getattr(block, f"ls{part}")(z)
    return scaled
