"""The frozen Vision Transformer: any timm ViT whose output is its CLS token. Prompts enter as named token slots."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.vit import fast_block, nano, two_towers
from fedbench.vit.block_forward import Prefixes, has_plain_attention, leading, whole
from fedbench.vit.weights import WeightsError, fitting_state, load_weights, refuse_broken

PromptsAt = Callable[[int, Tensor], Mapping[str, Tensor]]
PrefixesAt = Callable[[int, Tensor], Mapping[str, Tensor]]
Run = Callable[..., Tensor]  # (part, block, x, ...): part(block, x, ...), see `fedbench.vit.compiled`


class BackboneError(ValueError):
    """A backbone cannot be made. The message names the model, file or size, and what would work."""


@dataclass(frozen=True)
class PartialPass:
    """A pass up to block `layer`: the tokens [N, T, D] that enter it, before any prompt of this block.

    ``lengths``: the slots among the tokens. ``tapped``: the CLS tokens [N, D] observed in earlier blocks.
    """

    layer: int
    tokens: Tensor
    lengths: dict[str, int] = field(default_factory=dict)
    tapped: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


class Backbone(nn.Module):
    """A frozen ViT without its head.

    ``trims_last_block``: the last block computes only the tokens that are read. ``uses_fast_blocks``: frozen blocks use a
    hand-written backward pass (`fedbench.vit.fast_block`). Both change results by rounding only and may be set to False.
    ``takes_prefixes``: whether keys and values of its blocks may have prefixes. ``width`` D, ``depth`` L, ``tokens`` 1 + T,
    ``patch_size`` and ``image_size`` in pixels; ``mean`` and ``std`` are those that the checkpoint was trained with.
    """

    def __init__(
        self, vit: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...], shortcuts: bool = True
    ) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.takes_prefixes = all(has_plain_attention(block) for block in vit.blocks)
        self.trims_last_block = shortcuts and has_plain_attention(vit.blocks[-1])
        self.uses_fast_blocks = shortcuts and all(fast_block.is_supported(block) for block in vit.blocks)
        self.mean, self.std = mean, std
        self.width, self.depth = int(vit.embed_dim), len(vit.blocks)
        self.patch_size, self.image_size = int(vit.patch_embed.patch_size[0]), int(vit.patch_embed.img_size[0])
        self.tokens = int(vit.num_prefix_tokens) + int(vit.patch_embed.num_patches)

    def forward(
        self,
        images: Tensor | PartialPass,
        layers: tuple[int, ...] = (),
        prompts_at: PromptsAt | None = None,
        taps: tuple[int, ...] = (),
        slots_read: bool = True,
        run: Run | None = None,
        prefixes_at: PrefixesAt | None = None,
        patches_read: bool = False,
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Run `images` [N, 3, H, W], or the rest of a `partial_pass`. Return what a head may read, and the taps.

        Before each block of `layers`, ``prompts_at(layer, cls)`` gives ``{slot: [N, P, D]}``. A known slot is replaced
        (deep prompts), a new slot is inserted after the others. All slots are between CLS and the patches, without
        position embedding. In the same blocks, ``prefixes_at(layer, tokens)`` gives the prefixes of keys and values (see
        `fedbench.vit.block_forward`), from the block's normalised tokens [N, T, D]. `run`, if not None, runs each other block.
        Only CLS is returned, with the slots if `slots_read`, and with the N' patch tokens if `patches_read`. The last block
        computes nothing else.
        Returns ``({"cls": [N, D], slot: [N, P, D], "patches": [N, N', D]}, {layer: CLS token [N, D] entering it})``, the
        first mapping after the last norm.
        """
        last = self.depth - 1
        state = self.partial_pass(images, last, layers, prompts_at, taps, run, prefixes_at)
        entered = _entered(state, layers, prompts_at, taps)
        lengths = entered.lengths if slots_read or patches_read else {}
        count = None if patches_read else 1 + sum(lengths.values())
        x = self.vit.norm(self._last_block(entered.tokens, count, run, _prefixes(last, layers, prefixes_at)))
        patches = [x.shape[1] - 1 - sum(lengths.values())] if patches_read else []  # a part of no tokens costs a kernel
        cls, *parts = x.split([1, *lengths.values(), *patches], dim=1)
        read = {"cls": cls[:, 0]} | (dict(zip(lengths, parts, strict=False)) if slots_read else {})
        if patches_read:
            read["patches"] = parts[-1][:, int(self.vit.num_prefix_tokens) - 1 :]  # without registers
        return read, entered.tapped

    def _last_block(self, x: Tensor, count: int | None, run: Run | None, prefixes: Prefixes | None) -> Tensor:
        """The first `count` tokens (None: all) that the last block makes of x [N, T, D]."""
        block = self.vit.blocks[self.depth - 1]
        if prefixes is not None:
            return leading(block, x, count if self.trims_last_block else None, prefixes)[:, :count]
        part = leading if self.trims_last_block and count is not None else whole
        return part(block, x, count) if run is None else run(part, block, x, count)

    def partial_pass(
        self,
        images: Tensor | PartialPass,
        stop: int,
        layers: tuple[int, ...] = (),
        prompts_at: PromptsAt | None = None,
        taps: tuple[int, ...] = (),
        run: Run | None = None,
        prefixes_at: PrefixesAt | None = None,
    ) -> PartialPass:
        """The blocks below `stop` of a pass, with the arguments of `forward`. Several passes may go on from here."""
        state = images if isinstance(images, PartialPass) else PartialPass(0, self.entering(images, 0))
        for layer in range(state.layer, stop):
            block, entered = self.vit.blocks[layer], _entered(state, layers, prompts_at, taps)
            x, prefixes = entered.tokens, _prefixes(layer, layers, prefixes_at)
            if prefixes is not None:
                x = leading(block, x, None, prefixes)
            elif run is not None:
                x = run(whole, block, x)
            elif self.uses_fast_blocks and fast_block.is_applicable(block, x):
                # If no earlier block needs a gradient, only the slots need one.
                slots = None if state.tokens.requires_grad else x[:, 1 : 1 + sum(entered.lengths.values())]
                x = fast_block.run_block(block, x if slots is None else x.detach(), slots)
            else:
                x = block(x)
            state = PartialPass(layer + 1, x, entered.lengths, entered.tapped)
        return state

    def entering(self, images: Tensor, layer: int) -> Tensor:
        """The tokens [N, 1+T, D] that enter block `layer` without prompts."""
        vit = self.vit
        x: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        for block in itertools.islice(vit.blocks, layer):
            x = block(x)
        return x

    def feature(self, images: Tensor, after: int | None = None) -> Tensor:
        """The prompt-free CLS feature [N, D] of `images` after block `after`, with the final norm; None: the last block."""
        if after is None:
            result: Tensor = self(images, slots_read=False)[0]["cls"]
        else:
            result = self.vit.norm(self.entering(images, after + 1)[:, 0])
        return result

    def with_products_in(self, dtype: torch.dtype) -> Backbone:
        """A copy whose matrix products (linear layers, patch embedding) have their weights in `dtype`.

        Under autocast to `dtype` it gives the same results without casting the frozen weights in every pass.
        """
        made = copy.deepcopy(self)
        for part in made.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.to(dtype)
        return made

    def weights_hash(self) -> str:
        """16 hex digits of all weights, independent of their precision on this device."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _prefixes(layer: int, layers: tuple[int, ...], prefixes_at: PrefixesAt | None) -> Prefixes | None:
    """The prefixes of block `layer`, if it has any."""
    return None if prefixes_at is None or layer not in layers else partial(prefixes_at, layer)


def _entered(
    state: PartialPass, layers: tuple[int, ...], prompts_at: PromptsAt | None, taps: tuple[int, ...]
) -> PartialPass:
    """`state` with the prompts of its block among the tokens, and with the block's tap."""
    x, layer = state.tokens, state.layer
    tapped = state.tapped | {layer: x[:, 0]} if layer in taps else state.tapped
    if layer not in layers or prompts_at is None:
        return PartialPass(layer, x, state.lengths, tapped)
    return PartialPass(layer, *insert(x, state.lengths, prompts_at(layer, x[:, 0])), tapped)


def insert(x: Tensor, lengths: Mapping[str, int], new: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, int]]:
    """`x` [N, 1+P+T, D], whose slots have the `lengths`, with the slots `new` replaced or inserted; and the new lengths."""
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
    """The backbone called `name`: an embedded one (``nano``, ``nano_plain``), a timm ViT, or an image tower.

    A timm ViT is downloaded, or read from the local file `weights`. `fedbench.vit.two_towers` names the image towers.

    Position embeddings are resampled to `image_size` pixels. ``pretrained=False`` gives random weights;
    ``shortcuts=False`` computes the backbone without shortcuts. Raises BackboneError.
    """
    _check_name(name, weights, image_size)
    if name in nano.NAMES:
        return Backbone(nano.build(name), nano.MEAN, nano.STD, shortcuts)
    if two_towers.is_two_towers(name):
        return _image_tower(name, weights, image_size, pretrained, shortcuts)
    options = _options(image_size)
    with torch.device("meta"):  # refuse unusable models before anything is downloaded
        _refuse_others(name, _created(name, False, options))
    vit = _created(name, pretrained and weights is None, options)
    try:
        if weights is not None:
            load_weights(weights, vit)
        elif pretrained:
            refuse_broken(vit.state_dict(), name)
    except WeightsError as error:
        raise BackboneError(str(error)) from error
    config: Any = vit.pretrained_cfg
    return Backbone(vit, tuple(config["mean"]), tuple(config["std"]), shortcuts)


def architecture(name: str, image_size: int | None = None, weights: Path | None = None) -> Backbone:
    """The backbone `name` on torch's meta device: sizes and shapes without values. Nothing is downloaded.

    Raises BackboneError, also if the names and shapes in the file `weights` do not fit.
    """
    _check_name(name, weights, image_size)
    with torch.device("meta"):
        if two_towers.is_two_towers(name):
            return _image_tower(name, weights, image_size, pretrained=False)
        if name in nano.NAMES:
            return Backbone(VisionTransformer(**nano.ARCHITECTURE), nano.MEAN, nano.STD)
        vit = _created(name, False, _options(image_size))
        _refuse_others(name, vit)
        if weights is not None:
            try:
                fitting_state(weights, vit, "meta")
            except WeightsError as error:
                raise BackboneError(str(error)) from error
    config: Any = vit.pretrained_cfg
    return Backbone(vit, tuple(config["mean"]), tuple(config["std"]))


def _image_tower(
    name: str, weights: Path | None, image_size: int | None, pretrained: bool, shortcuts: bool = True
) -> Backbone:
    """The image tower of a vision-language model. Raises BackboneError."""
    try:
        sizes = two_towers.sizes(name, weights)
        if image_size not in (None, sizes.vision["img_size"]):
            raise BackboneError(f"{name} takes {sizes.vision['img_size']} px images only")
        vit = two_towers.image_tower(sizes.vision, sizes.activation)
        if pretrained:
            state = two_towers.tensors(name, weights)
            two_towers.load(vit, two_towers.part(state, "visual."), str(weights or name))
    except WeightsError as error:
        raise BackboneError(str(error)) from error
    return Backbone(vit, sizes.mean, sizes.std, shortcuts)


def _check_name(name: str, weights: Path | None, image_size: int | None) -> None:
    """Raise BackboneError for a name that timm does not know, and for options that the embedded backbone does not have."""
    if name in nano.NAMES:
        if weights is not None or image_size not in (None, nano.ARCHITECTURE["img_size"]):
            raise BackboneError(
                f"{name} comes with its weights and takes {nano.ARCHITECTURE['img_size']} px images only"
            )
    elif not two_towers.is_two_towers(name) and not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:8]) or ", ".join(
            timm.list_models("vit_*")[:8]
        )
        embedded = ", ".join([*nano.NAMES, two_towers.EMBEDDED])
        raise BackboneError(f"no timm model is called {name!r}; near: {near}; or an embedded one: {embedded}")


def _options(image_size: int | None) -> dict[str, Any]:
    return {} if image_size is None else {"img_size": image_size}


def _created(name: str, pretrained: bool, options: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, TypeError, AssertionError, OSError, ValueError) as error:
        raise BackboneError(f"timm cannot make {name!r} {options or ''}: {error}") from error


def _refuse_others(name: str, vit: Any) -> None:
    """Raise BackboneError, with the reason, for a model that is not a plain ViT whose output is its CLS token."""
    if reason := _why_not(vit):
        raise BackboneError(
            f"{name!r} is not a plain ViT that is read at its CLS token, such as vit_base_patch16_224: {reason}"
        )
    (height, width), (patch, _) = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if height != width or height % patch:
        raise BackboneError(f"{name!r}: image_size {height} is not a multiple of {patch} px")


def _why_not(vit: Any) -> str | None:
    """Why a model cannot be a backbone; None for a plain ViT."""
    if not isinstance(vit, VisionTransformer):
        if getattr(vit, "rope", None) is not None:
            return f"it is of the class {type(vit).__name__} and has rotary position embeddings"
        return f"it is of the class {type(vit).__name__}"
    if vit.cls_token is None:
        return f"it has no CLS token (its pooling is {vit.global_pool or 'none'!r})"
    if getattr(vit, "dist_token", None) is not None:
        return "it has a distillation token beside CLS, and its prediction is the mean of two heads"
    if type(vit) is not VisionTransformer:
        return f"it is of the class {type(vit).__name__}"
    if vit.global_pool != "token":
        return f"its pooling is {vit.global_pool!r}, not the CLS token"
    if type(vit.patch_embed) is not PatchEmbed:
        return f"its patches come from a separate network ({type(vit.patch_embed).__name__}), not from one projection"
    if vit.pos_embed is None:
        return "it has no absolute position embeddings"
    return None
