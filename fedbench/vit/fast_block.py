"""A frozen ViT block with a hand-written backward pass for activations, on a CPU. Results equal those of timm's block.

It is faster than autograd for three reasons. It keeps nothing for the gradients of weights. It makes no view that must be
padded with zeros in the backward pass. In the first prompted block it computes the gradients of the prompts only, because no
earlier block needs the gradients of other tokens. Attention is two matrix products and a softmax, which on a CPU is faster
for some hundred tokens than a kernel that saves memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten: Any = torch.ops.aten


def is_supported(block: nn.Module) -> bool:
    """Whether a block has the plain form: pre-norm, one attention, an MLP with exact GELU, no scales, norms or gates."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attn, mlp = block.attn, block.mlp
    optional_parts = (block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm, mlp.norm)
    norms = (block.norm1, block.norm2)
    return (
        all(type(part) is nn.Identity for part in optional_parts)
        and all(isinstance(norm, nn.LayerNorm) and norm.weight is not None for norm in norms)
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and attn.gate is None
        and attn.attn_dim == attn.num_heads * attn.head_dim
    )


def is_applicable(block: nn.Module, x: Tensor) -> bool:
    """Whether `run_block` may replace a supported block: a gradient is needed, on a CPU, without autocast, weights frozen."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return False
    cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return cpu and not any(value.requires_grad for value in block.parameters())


def run_block(block: nn.Module, x: Tensor, slots: Tensor | None = None, first: int = 1) -> Tensor:
    """``block(x)`` for x [N, T, D]. With `slots` [N, P, D], P tokens of `x` from `first` on, only they receive a gradient."""
    result: Tensor = _FrozenBlock.apply(x, slots, block, first)  # type: ignore[no-untyped-call]
    return result


def _forward(block: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The block's output [N, T, D], and the tensors that its backward pass needs."""
    n, t, d = x.shape
    attn, mlp, heads = block.attn, block.mlp, block.attn.num_heads
    normed, mean1, rstd1 = _norm(block.norm1, x)
    qkv = F.linear(normed, attn.qkv.weight, attn.qkv.bias).view(n, t, 3, heads, d // heads)
    qkv = qkv.permute(2, 0, 3, 1, 4).reshape(3, n * heads, t, d // heads)
    q, k, v = qkv.unbind(0)
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=attn.scale)
    attention = torch.softmax(scores, -1)  # [N * heads, T, T]
    mixed = torch.bmm(attention, v).view(n, heads, t, d // heads).transpose(1, 2).reshape(n, t, d)
    y = F.linear(mixed, attn.proj.weight, attn.proj.bias).add_(x)
    normed, mean2, rstd2 = _norm(block.norm2, y)
    hidden = F.linear(normed, mlp.fc1.weight, mlp.fc1.bias)
    out = F.linear(F.gelu(hidden), mlp.fc2.weight, mlp.fc2.bias).add_(y)
    return out, (x, mean1, rstd1, qkv, attention, y, mean2, rstd2, hidden)


class _FrozenBlock(torch.autograd.Function):
    """The block with the gradient of x, or of the slots in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor | None, block: Any, first: int) -> Tensor:
        out, kept = _forward(block, x)
        ctx.save_for_backward(*kept)
        ctx.block, ctx.first, ctx.slots = block, first, 0 if slots is None else slots.shape[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, mean1, rstd1, qkv, attention, y, mean2, rstd2, hidden = ctx.saved_tensors
        n, t, d = x.shape
        block, heads, scale = ctx.block, ctx.block.attn.num_heads, ctx.block.attn.scale
        at = slice(ctx.first, ctx.first + ctx.slots) if ctx.slots else slice(None)  # the tokens that get a gradient
        q, k, v = qkv.unbind(0)
        back = aten.gelu_backward(grad @ block.mlp.fc2.weight, hidden) @ block.mlp.fc1.weight
        grad_y = _norm_back(block.norm2, back, y, mean2, rstd2).add_(grad)
        mixed = (grad_y @ block.attn.proj.weight).view(n, t, heads, d // heads).transpose(1, 2).reshape(q.shape)
        scores = aten._softmax_backward_data(torch.bmm(mixed, v.transpose(1, 2)), attention, -1, attention.dtype)
        parts = q.new_empty(3, len(q), len(range(t)[at]), d // heads)
        torch.baddbmm(parts[0], scores[:, at], k, beta=0, alpha=scale, out=parts[0])
        torch.baddbmm(parts[1], scores[:, :, at].transpose(1, 2), q, beta=0, alpha=scale, out=parts[1])
        torch.bmm(attention[:, :, at].transpose(1, 2), mixed, out=parts[2])
        parts = parts.view(3, n, heads, -1, d // heads).permute(1, 3, 0, 2, 4).reshape(n, -1, 3 * d)
        back = parts @ block.attn.qkv.weight
        result = _norm_back(block.norm1, back, x[:, at], mean1[:, at], rstd1[:, at]).add_(grad_y[:, at])
        return (None, result, None, None) if ctx.slots else (result, None, None, None)


def _norm(norm: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised x [..., D], and mean and reciprocal deviation [..., 1]."""
    out, mean, rstd = torch.native_layer_norm(x, list(norm.normalized_shape), norm.weight, norm.bias, norm.eps)
    return out, mean, rstd


def _norm_back(norm: Any, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of x."""
    shape, wanted = list(norm.normalized_shape), [True, False, False]
    back = aten.native_layer_norm_backward(
        grad, x.contiguous(), shape, mean.contiguous(), rstd.contiguous(), norm.weight, norm.bias, wanted
    )
    result: Tensor = back[0]
    return result
