"""Multiply-adds and kept numbers of the parts in which kinds of backbones differ: the MLP, rotations and the readout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedbench.vit.backbone import Backbone


@dataclass(frozen=True)
class BlockCost:
    """``mlp``: multiply-adds of the MLP for a token; ``hidden``: its width H at the last linear layer.

    ``kept``: numbers that a frozen block keeps of a token for its backward pass, in the precision of matrix products.
    """

    mlp: int
    hidden: int
    kept: int


def block_cost(vit: Backbone) -> BlockCost:
    """The costs of a block of `vit`.

    Kept are queries, keys, values and attention's output (4 D) and the input of the activation (H). A gated MLP (SwiGLU)
    keeps both factors and the input of the activation (3 H). Rotated keys are a copy beside the keys, which stay with the
    values (D).
    """
    block: Any = vit.vit.blocks[0]
    linear = [part for part in block.mlp.modules() if isinstance(part, nn.Linear)]
    products, hidden = sum(part.weight.numel() for part in linear), int(block.mlp.fc2.in_features)
    is_gated = products > 2 * vit.width * hidden
    kept = (4 + vit.rotary.rotates) * vit.width + (3 if is_gated else 1) * hidden
    return BlockCost(products, hidden, kept)


@dataclass(frozen=True)
class ReadoutCost:
    """Multiply-adds of the pooling of one image, and the numbers that it keeps for its backward pass.

    ``backward``: of activations; ``weights``: of the gradients of its weights, if a method trains them. ``kept_residual``
    numbers have the precision of the residual stream, ``kept_product`` numbers that of matrix products.
    """

    forward: int = 0
    backward: int = 0
    weights: int = 0
    kept_residual: int = 0
    kept_product: int = 0


def readout_cost(vit: Backbone, tokens: int, trained: Mapping[str, Tensor]) -> ReadoutCost:
    """The costs of reading the last block's `tokens`; `trained`: the backbone's tensors that a method trains.

    A model that is not read at CLS norms all tokens before it pools them, or the mean alone. Attention pooling has keys and
    values of N' patches (2 N' D^2), one query (D^2), scores and mixture (2 N' D), a projection (D^2) and an MLP (2 D H). Its
    query needs no gradient.
    """
    normed = 0 if vit.readout.at_cls or isinstance(vit.vit.norm, nn.Identity) else tokens * vit.width
    if vit.readout.pool != "map":
        return ReadoutCost(kept_residual=normed)
    pool, patches, width = vit.vit.attn_pool, vit.readout.patches, vit.width
    inside = {name: value for name, value in trained.items() if name.startswith("vit.attn_pool.") and value.dim() == 2}
    behind = sum(part.weight.numel() for part in (pool.proj, pool.mlp.fc1, pool.mlp.fc2))
    of_query = width**2 + patches * width  # from the scores to the query, and from the query to the latent token
    return ReadoutCost(
        forward=2 * patches * width**2 + width**2 + 2 * patches * width + behind,
        backward=2 * patches * width**2 + 3 * patches * width + behind + of_query * bool(inside),
        weights=sum(value.numel() * (patches if ".kv." in name else 1) for name, value in inside.items()),
        kept_residual=normed,
        kept_product=2 * patches * width,
    )
