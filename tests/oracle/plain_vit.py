"""A Vision Transformer written out from its equations (Dosovitskiy et al. 2021), on a dictionary of timm's tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NAME, SIZE, PATCH, WIDTH, DEPTH, HEADS, HIDDEN = "test_vit", 32, 16, 64, 6, 2, 192  # timm's smallest ViT at 32 px
PATCHES, TOKENS = (SIZE // PATCH) ** 2, 1 + (SIZE // PATCH) ** 2

Enter = Callable[
    [int, Tensor], "Tensor | None"
]  # (block, CLS tokens [n, D]) -> tokens [n, P, D] to put before the patches


def write_weights(path: Path) -> dict[str, Tensor]:
    """Random weights for timm's architecture in a file, of which every tensor matters."""
    names = timm.create_model(NAME, num_classes=0, img_size=SIZE).state_dict()
    draw = torch.Generator().manual_seed(5)
    state = {name: torch.randn(value.shape, generator=draw) * 0.15 for name, value in names.items()}
    state |= {name: 1 + value for name, value in state.items() if "norm" in name and name.endswith("weight")}
    save_file(state, path)
    return load_file(path)


def weights_hash(state: dict[str, Tensor]) -> str:
    content = b"".join(f"vit.{name}".encode() + state[name].numpy().tobytes() for name in sorted(state))
    return hashlib.sha256(content).hexdigest()[:16]


class PlainViT:
    """The final CLS feature of normalised images [n, 3, S, S] in double precision."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.w = {name: value.double() for name, value in state.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def attention(self, x: Tensor, name: str) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.linear(x, f"{name}.qkv").view(n, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(d // HEADS)).softmax(-1) @ v
        return self.linear(mixed.transpose(1, 2).reshape(n, t, d), f"{name}.proj")

    def mlp(self, x: Tensor, name: str) -> Tensor:
        h = self.linear(x, f"{name}.fc1")
        return self.linear(h * (1 + torch.erf(h / math.sqrt(2))) / 2, f"{name}.fc2")

    def embed(self, images: Tensor) -> Tensor:
        n = len(images)
        patches = images.view(n, 3, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
        kernel = self.w["patch_embed.proj.weight"].flatten(1)
        x = patches.reshape(n, PATCHES, -1) @ kernel.T + self.w["patch_embed.proj.bias"]
        return torch.cat([self.w["cls_token"].expand(n, 1, WIDTH), x], 1) + self.w["pos_embed"]

    def __call__(self, images: Tensor, enter: Enter = lambda layer, cls: None) -> Tensor:
        """New tokens enter behind CLS and the tokens that entered before, in front of the patches."""
        x, inserted = self.embed(images), 0
        for layer in range(DEPTH):
            new = enter(layer, x[:, 0])
            if new is not None:
                x = torch.cat([x[:, : 1 + inserted], new, x[:, 1 + inserted :]], 1)
                inserted += new.shape[1]
            x = x + self.attention(self.norm(x, f"blocks.{layer}.norm1"), f"blocks.{layer}.attn")
            x = x + self.mlp(self.norm(x, f"blocks.{layer}.norm2"), f"blocks.{layer}.mlp")
        return self.norm(x, "norm")[:, 0]


def multiply_adds(entering: dict[int, int], lowest: int) -> int:
    """Multiply-adds of training on one image, forward and backward, if `entering[layer]` tokens enter before a block.

    Per block, T tokens of which R are read: queries and output projection 2 R D^2, keys and values 2 T D^2, scores and
    mixture 2 T R D, MLP 2 R D H; R is T but in the last block, where only CLS is read. Backward goes down to block `lowest`
    and has a product for each linear map and two for each of attention's.
    """
    tokens, total = TOKENS, PATCHES * 3 * PATCH**2 * WIDTH
    for layer in range(DEPTH):
        tokens += entering.get(layer, 0)
        read = 1 if layer == DEPTH - 1 else tokens
        linear = 2 * read * WIDTH**2 + 2 * tokens * WIDTH**2 + 2 * read * WIDTH * HIDDEN
        attention = 2 * tokens * read * WIDTH
        total += linear + attention
        total += (linear + 2 * attention) if layer >= lowest else 0
    return total
