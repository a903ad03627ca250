"""The forward pass of one frozen block: all of its tokens or the first ones only, with prefixes of its keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# From the normalised tokens [N, T, D] that enter attention to what joins its keys and values, see `Method.prefixes`.
Prefixes = Callable[[Tensor], Mapping[str, Tensor]]


def has_plain_attention(block: nn.Module) -> bool:
    """Whether `leading` computes the block: timm's `Block` with its `Attention`, whatever its norms, scales or gate."""
    return type(block) is Block and type(getattr(block, "attn", None)) is Attention


def whole(block: Any, x: Tensor, count: int | None = None) -> Tensor:
    """``block(x)``, or its first `count` tokens."""
    result: Tensor = block(x)
    return result[:, :count]


def leading(block: Any, x: Tensor, count: int | None = None, prefixes: Prefixes | None = None) -> Tensor:
    """The first `count` tokens (None: all) of ``block(x)`` for a block with plain attention: x [N, T, D] -> [N, count, D].

    Keys and values are computed for all tokens; queries, projection and MLP for the first `count` only. `prefixes` returns
    ``added_keys`` and ``added_values`` [N, T, D], which are added to the keys and values of the tokens, and ``keys`` and
    ``values`` [N, P, D], which every query sees beside them; each pair may be absent.
    """
    attn = block.attn
    y, heads = block.norm1(x), attn.num_heads
    width, bias = attn.attn_dim, attn.qkv.bias
    n, count = len(y), x.shape[1] if count is None else count
    q = F.linear(y[:, :count], attn.qkv.weight[:width], None if bias is None else bias[:width])
    k, v = F.linear(y, attn.qkv.weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    made = {} if prefixes is None else {name: value.to(k.dtype) for name, value in prefixes(y).items()}
    if "added_keys" in made:
        k, v = k + made["added_keys"], v + made["added_values"]
    q, k, v = (_heads(z, heads) for z in (q, k, v))
    q, k = attn.q_norm(q), attn.k_norm(k)
    if "keys" in made:
        k, v = (torch.cat([_heads(made[name], heads), z], dim=2) for name, z in (("keys", k), ("values", v)))
    z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, width)
    z = attn.norm(z)
    if attn.gate is not None:
        z = z * attn.gate(y[:, :count]).sigmoid()
    x = x[:, :count] + block.ls1(attn.proj(z))
    result: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return result


def _heads(z: Tensor, heads: int) -> Tensor:
    """[N, T, D] -> [N, heads, T, D/heads]."""
    return z.view(len(z), -1, heads, z.shape[-1] // heads).transpose(1, 2)
