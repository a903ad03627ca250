"""The frozen Vision Transformer, any timm ViT; prompts enter as named token slots. It knows nothing of clients."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from fedbench.vit import fast_block, nano

PromptsAt = Callable[[int, Tensor], Mapping[str, Tensor]]
Run = Callable[..., Tensor]  # (part, block, x, ...): part(block, x, ...), see `fedbench.vit.compiled`


class BackboneError(ValueError):
    """A backbone that cannot be made: says which name, file or size, and what would do."""


class Backbone(nn.Module):
    """A frozen ViT without its head.

    ``lean``: the last block computes only the tokens that are read; ``plain``: a frozen block goes backward by its own hand
    (`fedbench.vit.fast_block`). Both change no number but its rounding, and may be set to False.
    ``width`` D, ``depth`` L, ``tokens`` 1 + T, ``patch_size`` and ``image_size`` in pixels; ``mean`` and ``std`` are the
    checkpoint's own.
    """

    def __init__(
        self, vit: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...], shortcuts: bool = True
    ) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        plain_attention = type(vit.blocks[-1]) is Block and type(getattr(vit.blocks[-1], "attn", None)) is Attention
        self.lean = shortcuts and plain_attention
        self.plain = shortcuts and all(fast_block.fits(block) for block in vit.blocks)
        self.mean, self.std = mean, std
        self.width, self.depth = int(vit.embed_dim), len(vit.blocks)
        self.patch_size, self.image_size = int(vit.patch_embed.patch_size[0]), int(vit.patch_embed.img_size[0])
        self.tokens = int(vit.num_prefix_tokens) + (self.image_size // self.patch_size) ** 2

    def forward(
        self,
        images: Tensor,
        layers: tuple[int, ...] = (),
        prompts_at: PromptsAt | None = None,
        taps: tuple[int, ...] = (),
        slots_read: bool = True,
        run: Run | None = None,
        start: int = 0,
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Run `images` [N, 3, H, W] and return the tokens that a head may read, and what was tapped.

        Before each block of `layers`, ``prompts_at(layer, cls)`` gives ``{slot: [N, P, D]}``; a known slot is replaced
        (deep prompts), a new one inserted behind the others, all between CLS and the patches, without position
        embedding. Where no slot is read (`slots_read`), only CLS comes back and the last block computes nothing else.
        Blocks go by `run`, where that is given. With a `start`, in place of images stand the tokens `entering` that block,
        and no prompt enters before it.
        Returns ``({"cls": [N, D], slot: [N, P, D]}, {layer: the CLS token [N, D] entering it})``, the first
        after the last norm.
        """
        vit = self.vit
        x = images if start else self.entering(images, 0)
        lengths: dict[str, int] = {}
        tapped: dict[int, Tensor] = {}
        for layer, block in itertools.islice(enumerate(vit.blocks), start, None):
            if layer in taps:
                tapped[layer] = x[:, 0]
            first = None  # the slots, where they alone need a gradient
            if layer in layers and prompts_at is not None:
                below = x.requires_grad
                x, lengths = insert(x, lengths, prompts_at(layer, x[:, 0]))
                if x.requires_grad and not below:
                    first = x[:, 1 : 1 + sum(lengths.values())]
            if layer == self.depth - 1:
                break
            if run is not None:
                x = run(whole, block, x)
            elif self.plain and fast_block.serves(block, x):
                x = fast_block.through(block, x if first is None else x.detach(), first)
            else:
                x = block(x)
        if not slots_read:
            lengths = {}
        count = 1 + sum(lengths.values())
        last = leading if self.lean else whole
        x = last(vit.blocks[-1], x, count) if run is None else run(last, vit.blocks[-1], x, count)
        cls, *slots = vit.norm(x).split([1, *lengths.values()], dim=1)
        return {"cls": cls[:, 0], **dict(zip(lengths, slots, strict=True))}, tapped

    def entering(self, images: Tensor, layer: int) -> Tensor:
        """The tokens [N, 1+T, D] that enter block `layer` where no prompts do."""
        vit = self.vit
        x: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        for block in itertools.islice(vit.blocks, layer):
            x = block(x)
        return x

    def weights_hash(self) -> str:
        """16 hex digits of all weights, independent of their precision on this device."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def whole(block: Any, x: Tensor, count: int | None = None) -> Tensor:
    """``block(x)``, or the first `count` tokens of it."""
    result: Tensor = block(x)
    return result[:, :count]


def leading(block: Any, x: Tensor, count: int) -> Tensor:
    """The first `count` tokens of ``block(x)`` of a timm `Block`, x [N, T, D] -> [N, count, D], and nothing else.

    All tokens are looked at (keys and values), but queries, projection and MLP are those of the leading ones only.
    """
    attn = block.attn
    y, heads = block.norm1(x), attn.num_heads
    width, bias = attn.attn_dim, attn.qkv.bias
    n = len(y)
    q = F.linear(y[:, :count], attn.qkv.weight[:width], None if bias is None else bias[:width])
    k, v = F.linear(y, attn.qkv.weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    q, k, v = (z.view(n, -1, heads, attn.head_dim).transpose(1, 2) for z in (q, k, v))  # [N, heads, T, D/heads]
    z = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v).transpose(1, 2).reshape(n, count, width)
    z = attn.norm(z)
    if attn.gate is not None:
        z = z * attn.gate(y[:, :count]).sigmoid()
    x = x[:, :count] + block.ls1(attn.proj(z))
    result: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return result


def insert(x: Tensor, lengths: Mapping[str, int], new: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, int]]:
    """`x` [N, 1+P+T, D], whose slots have the given `lengths`, with the slots `new` replaced or inserted."""
    cls, *slots, patches = x.split([1, *lengths.values(), x.shape[1] - 1 - sum(lengths.values())], dim=1)
    all_slots = dict(zip(lengths, slots, strict=True)) | dict(new)
    return torch.cat([cls, *all_slots.values(), patches], dim=1), {slot: v.shape[1] for slot, v in all_slots.items()}


def make(
    name: str,
    weights: Path | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
    shortcuts: bool = True,
) -> Backbone:
    """The backbone called `name`: ``nano`` (embedded) or a timm ViT, downloaded or read from a local safetensors file.

    Position embeddings are resampled to `image_size`. ``pretrained=False`` gives the architecture with random weights;
    ``shortcuts=False`` a backbone that saves no arithmetic.
    Raises BackboneError.
    """
    if name == "nano":
        if weights is not None or image_size not in (None, nano.ARCHITECTURE["img_size"]):
            raise BackboneError(f"nano comes with its weights and takes {nano.ARCHITECTURE['img_size']} px images only")
        return Backbone(nano.build(), nano.MEAN, nano.STD, shortcuts)
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:8]) or ", ".join(
            timm.list_models("vit_*")[:8]
        )
        raise BackboneError(f"no timm model is called {name!r}; near: {near}; or `nano`, the embedded one")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    with torch.device("meta"):  # what cannot serve is told before anything is downloaded
        _serves(name, _created(name, False, options))
    vit = _created(name, pretrained and weights is None, options)
    if weights is not None:
        _load(vit, weights)
    config: Any = vit.pretrained_cfg
    return Backbone(vit, tuple(config["mean"]), tuple(config["std"]), shortcuts)


def _created(name: str, pretrained: bool, options: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, TypeError, AssertionError, OSError, ValueError) as error:
        raise BackboneError(f"timm cannot make {name!r} {options or ''}: {error}") from error


def _serves(name: str, vit: Any) -> None:
    """Raise BackboneError where a model cannot be a backbone."""
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None or vit.global_pool != "token":
        raise BackboneError(f"{name!r} is not a plain ViT that is read at its CLS token, such as vit_base_patch16_224")
    size, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    if size % patch:
        raise BackboneError(f"{name!r}: image_size {size} is not a multiple of {patch} px")


def _load(vit: VisionTransformer, path: Path) -> None:
    try:
        state = {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{path}: not a readable safetensors file ({error})") from error
    state = checkpoint_filter_fn(state, vit)
    wanted = vit.state_dict()
    state = {
        name: value for name, value in state.items() if not name.startswith(("head.", "head_dist.", "pre_logits."))
    }
    wrong = [name for name, value in state.items() if name in wanted and value.shape != wanted[name].shape]
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if wrong or missing or surplus:
        raise BackboneError(
            f"{path} does not fit this architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(surplus)} unknown {surplus[:3]}, {len(wrong)} of another shape {wrong[:3]}"
        )
    vit.load_state_dict(state)
