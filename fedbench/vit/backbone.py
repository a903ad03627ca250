"""The frozen Vision Transformer: a timm ViT of the supported kinds. Prompts enter as named token slots.

`fedbench.vit.supported` lists the kinds, `fedbench.vit.readout` says how each is read.
"""

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
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.vit import fast_block, nano, two_towers
from fedbench.vit.block_forward import Prefixes, has_plain_attention, leading, whole
from fedbench.vit.readout import Readout, ReadoutError, move_norm_behind_pool, set_pool
from fedbench.vit.rotary import Rotary
from fedbench.vit.supported import SUPPORTED, why_not
from fedbench.vit.weights import WeightsError, fitting_state, has_tensor, load_weights, refuse_broken

PromptsAt = Callable[[int, Tensor], Mapping[str, Tensor]]
PrefixesAt = Callable[[int, Tensor], Mapping[str, Tensor]]
Run = Callable[..., Tensor]  # (part, block, x, ...): part(block, x, ...), see `fedbench.vit.compiled`


class BackboneError(ValueError):
    """A backbone cannot be made. The message names the model, file or size, and what would work."""


@dataclass(frozen=True)
class PartialPass:
    """A pass up to block `layer`: the tokens [N, T, D] that enter it, before any prompt of this block.

    ``lengths``: the slots among the tokens. ``tapped``: the summaries [N, D] observed in earlier blocks.
    """

    layer: int
    tokens: Tensor
    lengths: dict[str, int] = field(default_factory=dict)
    tapped: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


class Backbone(nn.Module):
    """A frozen ViT without its head.

    ``readout``: how it is read; ``rotary``: how its blocks rotate patch tokens. ``trims_last_block``: the last block computes
    only CLS and the slots that are read, if the head reads no patches. ``uses_fast_blocks``: frozen blocks use a hand-written
    backward pass (`fedbench.vit.fast_block`). Both change results by rounding only and may be set to False.
    ``takes_prefixes``: whether keys and values of its blocks may have prefixes. ``width`` D, ``depth`` L, ``tokens`` T of an
    image without prompts (CLS, registers and patches), ``patch_size`` and ``image_size`` in pixels; ``mean`` and ``std`` are
    those that the checkpoint was trained with.
    """

    def __init__(
        self, vit: VisionTransformer | Eva, mean: tuple[float, ...], std: tuple[float, ...], shortcuts: bool = True
    ) -> None:
        super().__init__()
        self.vit: Any = vit.eval().requires_grad_(False)
        self.readout, self.rotary = Readout(vit), Rotary(vit)
        self.takes_prefixes = all(has_plain_attention(block) for block in vit.blocks)
        self.trims_last_block = shortcuts and self.readout.at_cls and has_plain_attention(vit.blocks[-1])
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

        Before each block of `layers`, ``prompts_at(layer, cls)`` gives ``{slot: [N, P, D]}`` from the tokens' summary
        (`Readout.summary`). A known slot is replaced (deep prompts), a new slot is inserted after the others. All slots are
        behind CLS, or first if there is none, without position embedding. In the same blocks, ``prefixes_at(layer, tokens)``
        gives the prefixes of keys and values (see `fedbench.vit.block_forward`), from the block's normalised tokens
        [N, T, D]. `run`, if not None, runs each other block.
        Only the feature is returned, with the slots if `slots_read`, and with the N' patch tokens if `patches_read`. If the
        feature is the CLS token, the last block computes nothing else.
        Returns ``({"cls": [N, D], slot: [N, P, D], "patches": [N, N', D]}, {layer: summary [N, D] of its input})``, the first
        mapping after the last norm. ``cls`` is what timm's head reads: the CLS token, or the pooled patches.
        """
        last = self.depth - 1
        state = self.partial_pass(images, last, layers, prompts_at, taps, run, prefixes_at)
        entered = self._entered(state, layers, prompts_at, taps)
        first, whole_read = self.readout.first_slot, patches_read or not self.readout.at_cls
        lengths = entered.lengths if slots_read or whole_read else {}
        count = None if whole_read else first + sum(lengths.values())
        x = self.vit.norm(self._through(last, entered, count, run, _prefixes(last, layers, prefixes_at)))
        rest = [x.shape[1] - first - sum(lengths.values())] if whole_read else []  # a part of no tokens costs a kernel
        cls, *parts = x.split([first, *lengths.values(), *rest], dim=1)
        patches = parts[-1][:, self.readout.registers :] if whole_read else None
        read = {"cls": self.readout.feature(cls, patches)}
        if slots_read:
            read |= {slot: self.vit.fc_norm(part) for slot, part in zip(lengths, parts, strict=False)}
        if patches_read:
            read["patches"] = self.vit.fc_norm(patches)
        return read, entered.tapped

    def _through(
        self, layer: int, state: PartialPass, count: int | None, run: Run | None, prefixes: Prefixes | None
    ) -> Tensor:
        """The first `count` tokens (None: all) that block `layer` makes of the tokens of `state`."""
        block, x, rope = self.vit.blocks[layer], state.tokens, self.rotary.of_block(layer)
        exact = count if self.trims_last_block else None  # only these have queries
        if prefixes is not None:
            return leading(block, x, exact, rope, prefixes)[:, :count]
        part: Callable[..., Tensor] = whole if exact is None and rope is None else leading
        arguments = (count,) if part is whole else (exact, rope)
        made = part(block, x, *arguments) if run is None else run(part, block, x, *arguments)
        return made[:, :count]

    def _through_fast(self, layer: int, state: PartialPass, earlier_trains: bool) -> Tensor:
        """`_through` for all tokens with a fast block. If nothing `earlier_trains`, only the slots get a gradient."""
        block, x, first = self.vit.blocks[layer], state.tokens, self.readout.first_slot
        slots = None if earlier_trains else x[:, first : first + sum(state.lengths.values())]
        return fast_block.run_block(block, x if slots is None else x.detach(), slots, first)

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
            entered, prefixes = self._entered(state, layers, prompts_at, taps), _prefixes(layer, layers, prefixes_at)
            is_fast = self.uses_fast_blocks and run is None and prefixes is None
            if is_fast and fast_block.is_applicable(self.vit.blocks[layer], entered.tokens):
                x = self._through_fast(layer, entered, state.tokens.requires_grad)
            else:
                x = self._through(layer, entered, None, run, prefixes)
            state = PartialPass(layer + 1, x, entered.lengths, entered.tapped)
        return state

    def _entered(
        self, state: PartialPass, layers: tuple[int, ...], prompts_at: PromptsAt | None, taps: tuple[int, ...]
    ) -> PartialPass:
        """`state` with the prompts of its block among the tokens, and with the block's tap."""
        x, layer = state.tokens, state.layer
        tapped = state.tapped | {layer: self.readout.summary(x)} if layer in taps else state.tapped
        if layer not in layers or prompts_at is None:
            return PartialPass(layer, x, state.lengths, tapped)
        new = prompts_at(layer, self.readout.summary(x))
        return PartialPass(layer, *insert(x, state.lengths, new, self.readout.first_slot), tapped)

    def entering(self, images: Tensor, layer: int) -> Tensor:
        """The tokens [N, T, D] that enter block `layer` without prompts."""
        vit = self.vit
        x: Tensor = vit.norm_pre(self.rotary.positioned(vit.patch_embed(images)))
        for i, block in enumerate(itertools.islice(vit.blocks, layer)):
            rope = self.rotary.of_block(i)
            x = block(x) if rope is None else leading(block, x, None, rope)
        return x

    def feature(self, images: Tensor, after: int | None = None) -> Tensor:
        """The prompt-free feature [N, D] of `images`; with `after`, the summary after that block with the final norm."""
        if after is None:
            result: Tensor = self(images, slots_read=False)[0]["cls"]
            return result
        return self.readout.summary_feature(self.entering(images, after + 1))

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
        """16 hex digits of all weights, independent of their precision on this device, and of the pooling if not of CLS."""
        digest = hashlib.sha256(b"" if self.readout.at_cls else self.readout.pool.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _prefixes(layer: int, layers: tuple[int, ...], prefixes_at: PrefixesAt | None) -> Prefixes | None:
    """The prefixes of block `layer`, if it has any."""
    return None if prefixes_at is None or layer not in layers else partial(prefixes_at, layer)


def insert(
    x: Tensor, lengths: Mapping[str, int], new: Mapping[str, Tensor], first: int = 1
) -> tuple[Tensor, dict[str, int]]:
    """`x` [N, T, D], whose slots of the `lengths` follow `first` tokens, with the slots `new` replaced or inserted.

    Also returns the new lengths.
    """
    cls, *slots, rest = x.split([first, *lengths.values(), x.shape[1] - first - sum(lengths.values())], dim=1)
    all_slots = dict(zip(lengths, slots, strict=True)) | dict(new)
    return torch.cat([cls, *all_slots.values(), rest], dim=1), {slot: v.shape[1] for slot, v in all_slots.items()}


def make(
    name: str,
    weights: Path | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
    shortcuts: bool = True,
    pool: str | None = None,
) -> Backbone:
    """The backbone called `name`: an embedded one (``nano``, ``nano_plain``), a timm ViT, or an image tower.

    A timm ViT is downloaded, or read from the local file `weights`. `fedbench.vit.two_towers` names the image towers.

    Position embeddings are resampled to `image_size` pixels. ``pretrained=False`` gives random weights;
    ``shortcuts=False`` computes the backbone without shortcuts. `pool`: "token" or "avg" instead of timm's pooling; the final
    norm stays before or after it as in the weights. Raises BackboneError.
    """
    _check_name(name, weights, image_size, pool)
    if name in nano.NAMES:
        return Backbone(_pooled(name, nano.build(name), pool), nano.MEAN, nano.STD, shortcuts)
    if two_towers.is_two_towers(name):
        return _image_tower(name, weights, image_size, pretrained, shortcuts)
    options = _options(image_size)
    with torch.device("meta"):  # refuse unusable models before anything is downloaded
        bare = _created(name, False, options)
        _refuse_others(name, bare)
        _pooled(name, bare, pool)
    vit = _created(name, pretrained and weights is None, options)
    try:
        if weights is not None:
            _fit_norm(weights, vit, pool)
            load_weights(weights, vit)
        elif pretrained:
            refuse_broken(vit.state_dict(), name)
    except WeightsError as error:
        raise BackboneError(str(error)) from error
    config: Any = vit.pretrained_cfg
    return Backbone(_pooled(name, vit, pool), tuple(config["mean"]), tuple(config["std"]), shortcuts)


def architecture(
    name: str, image_size: int | None = None, weights: Path | None = None, pool: str | None = None
) -> Backbone:
    """The backbone `name` on torch's meta device: sizes and shapes without values. Nothing is downloaded.

    Raises BackboneError, also if the names and shapes in the file `weights` do not fit.
    """
    _check_name(name, weights, image_size, pool)
    with torch.device("meta"):
        if two_towers.is_two_towers(name):
            return _image_tower(name, weights, image_size, pretrained=False)
        if name in nano.NAMES:
            return Backbone(_pooled(name, VisionTransformer(**nano.ARCHITECTURE), pool), nano.MEAN, nano.STD)
        vit = _created(name, False, _options(image_size))
        _refuse_others(name, vit)
        if weights is not None:
            try:
                _fit_norm(weights, vit, pool)
                fitting_state(weights, vit, "meta")
            except WeightsError as error:
                raise BackboneError(str(error)) from error
    config: Any = vit.pretrained_cfg
    return Backbone(_pooled(name, vit, pool), tuple(config["mean"]), tuple(config["std"]))


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


def _fit_norm(weights: Path, vit: Any, pool: str | None) -> None:
    """Move the final norm of `vit` behind its pooling if the file has it there, as fine-tuned masked autoencoders do."""
    if pool == "avg" and has_tensor(weights, "fc_norm.weight"):
        move_norm_behind_pool(vit)


def _pooled(name: str, vit: Any, pool: str | None) -> Any:
    """`vit`, read by `pool` if that is not None. Raises BackboneError if it cannot be."""
    if pool is not None and pool != vit.global_pool:
        try:
            set_pool(vit, pool)
        except ReadoutError as error:
            raise BackboneError(f"{name!r} cannot have pool {pool!r}: {error}") from error
    return vit


def _check_name(name: str, weights: Path | None, image_size: int | None, pool: str | None) -> None:
    """Raise BackboneError for a name that timm does not know, and for options that the embedded backbone does not have."""
    if pool is not None and two_towers.is_two_towers(name):
        raise BackboneError(f"{name} is read at its CLS token, from which its image features come; leave `pool` out")
    if name in nano.NAMES:
        if weights is not None or image_size not in (None, nano.ARCHITECTURE["img_size"]):
            raise BackboneError(
                f"{name} comes with its weights and takes {nano.ARCHITECTURE['img_size']} px images only"
            )
    elif name == two_towers.EMBEDDED and weights is not None:
        raise BackboneError(f"{name} comes with its weights; a file of your own is {two_towers.LOCAL} with `weights`")
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
    """Raise BackboneError, with the reason, for a model that cannot be a backbone."""
    if reason := why_not(vit):
        raise BackboneError(f"{name!r} is not a supported ViT: {reason}. Supported: {SUPPORTED}")
    (height, width), (patch, _) = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if height != width or height % patch:
        raise BackboneError(f"{name!r}: image_size {height} is not a multiple of {patch} px")
