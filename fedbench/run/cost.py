"""Arithmetic and memory of a run, counted from shapes: multiply-adds and kept bytes of a pass, chunk sizes, estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedbench import data
from fedbench.method import Method, Param, Task, Values
from fedbench.method.phases import trained_in
from fedbench.plan.config import LocalConfig, Machine, PlannedRun
from fedbench.plan.plugins import Plugins
from fedbench.run.backbone_cost import block_cost, readout_cost
from fedbench.run.server import parameters
from fedbench.vit import backbone, two_towers
from fedbench.vit.images import Augment

if TYPE_CHECKING:
    from fedbench.text.text_cost import TextCost

CPU_CACHE_BYTES = 4 << 20  # the widest activation of a chunk should stay in a shared cache of this size
GPU_CHUNK_TOKENS = 200_000  # tokens in a pass that fill a GPU
GPU_CHUNK_BYTES = (
    15 << 30
)  # most bytes that a pass keeps for its backward pass: 10 x 32 images of ViT-B/16 within 24 GiB
PROCESS_BYTES = 700 << 20  # an interpreter with torch, timm and torchvision in it


@dataclass(frozen=True)
class PassCost:
    """Multiply-adds of one image, its tokens at each block, and its tokens in all blocks that keep them for a backward pass.

    ``forward``: through the whole backbone. ``backward``: from the lowest block that a trained value enters, of activations
    only if the backbone is frozen. ``kept_block``: numbers that a frozen block keeps of a token beside the inputs of its norms.
    ``kept_readout``: those that the pooling of an image keeps, in the precisions of the residual stream and of products.
    """

    forward: int
    backward: int
    tokens: tuple[int, ...]
    width: int
    hidden: int
    kept_tokens: int
    trains_backbone: bool
    kept_block: int
    kept_readout: tuple[int, int]

    def kept_bytes(self, precision: str) -> int:
        """Bytes that autograd keeps of one image on a GPU, where frozen blocks are timm's.

        For each token and frozen block: the inputs of both LayerNorms in the residual stream's precision, and what
        `fedbench.run.backbone_cost` counts in the precision of matrix products. Blocks whose weights train also keep the inputs
        of their matrices (3 D + H).
        """
        residual, product = {"bfloat16": (4, 2), "float64": (8, 8)}.get(precision, (4, 4))  # bytes of a number
        numbers = self.kept_block + (3 * self.width + self.hidden) * self.trains_backbone
        readout = residual * self.kept_readout[0] + product * self.kept_readout[1]
        return self.kept_tokens * (2 * residual * self.width + product * numbers) + readout * (self.kept_tokens > 0)


def one_pass(
    method: Method, spec: Mapping[str, Param], vit: backbone.Backbone, trained: Iterable[str] | None = None
) -> PassCost:
    """Count one image of one client: attention 4 T D^2 + 2 T^2 D, MLP 2 T D H a block, the patch embedding and pooling.

    A gated MLP has 3 T D H. P prefixes of keys and values add 2 T P D, and what the hook itself multiplies. In the last block
    of a model read at CLS only the tokens that are read have queries, a projection and an MLP. Backward: the activations from
    the lowest block that a value of `trained` enters (default: all trained values), and the backbone's tensors if the method
    trains them. Slot lengths, and which values depend on trained ones, come from calling the hooks with one sample on the
    meta device, where tensors have shapes but no values; the backbone does not run.
    """
    trained = {n for n, param in spec.items() if param.trains} if trained is None else set(trained)
    p = {n: v.init.detach().to("meta").requires_grad_(n in trained) for n, v in spec.items()}
    patches = (vit.image_size // vit.patch_size) ** 2
    width, block = vit.width, block_cost(vit)
    embedding = patches * 3 * vit.patch_size**2 * width
    tokens: list[int] = []
    forward, backward = embedding, 0
    tensors = _trained_backbone_tensors(method, p, vit)
    lowest = _lowest_block(tensors, vit.depth)
    entered = vit.depth  # the lowest block that a gradient passes on its way to something before it
    if _trains_pixels(method, p, vit):
        lowest, entered, backward = -1, -1, embedding
    for layer, (slots, trained_slots) in enumerate(_slots(method, p, vit)):
        if trained_slots:
            lowest, entered = min(lowest, layer), min(entered, layer)
        t = int(vit.vit.num_prefix_tokens) + patches + slots
        tokens.append(t)
        read = t  # tokens that the next block reads; after the last block those that the head reads
        if layer == vit.depth - 1 and vit.trims_last_block and not method.reads_patches:
            read = 1 + (slots if method.reads_slots else 0)
        prefixes = _prefixes(method, p, vit, layer, t, input_trains=entered <= layer or lowest < layer)
        keys = t + prefixes.count
        linear = 2 * t * width**2 + read * (2 * width**2 + block.mlp)
        attention = 2 * keys * read * width
        forward += linear + attention + prefixes.forward
        if prefixes.trained and layer < lowest:  # neither queries nor the block's input need a gradient
            lowest, backward = layer, backward - 3 * t * width**2 - keys * read * width
        if layer >= lowest:
            backward += linear + 2 * attention + prefixes.backward
        at = f"blocks.{layer}."
        backward += sum(_for_weights(n, v, t, read) for n, v in tensors.items() if at in n and v.dim() == 2)
        if (
            layer == lowest < entered
            and f"vit.{at}attn.qkv.weight" in tensors
            and f"vit.{at}norm1.weight" not in tensors
        ):
            backward -= 3 * t * width**2  # the input of this product needs no gradient
    backward += embedding * any("patch_embed.proj.weight" in name for name in tensors)
    readout = readout_cost(vit, tokens[-1], tensors)
    forward += readout.forward
    backward += readout.backward * (lowest < vit.depth) + readout.weights
    return PassCost(
        forward=forward,
        backward=backward,
        tokens=tuple(tokens),
        width=width,
        hidden=block.hidden,
        kept_tokens=sum(tokens[max(0, lowest) :]) * (1 + method.reads_views * len(method.views)),
        trains_backbone=bool(tensors),
        kept_block=block.kept,
        kept_readout=(readout.kept_residual, readout.kept_product),
    )


def _slots(method: Method, p: Values, vit: backbone.Backbone) -> list[tuple[int, bool]]:
    """For each block: the prompt tokens in its input, and whether prompts that need a gradient enter there."""
    zero = torch.zeros(1, vit.width, device="meta")
    layers = method.layers(vit.depth)
    lengths: dict[str, int] = {}
    blocks = []
    for layer in range(vit.depth):
        new = method.prompts(layer, p, zero, zero if method.uses_query else None) if layer in layers else {}
        lengths |= {name: value.shape[1] for name, value in new.items()}
        blocks.append((sum(lengths.values()), any(value.requires_grad for value in new.values())))
    return blocks


@dataclass(frozen=True)
class _Prefixes:
    """The prefixes of a block: their number P, whether they need a gradient, and multiply-adds of the hook itself."""

    count: int = 0
    trained: bool = False
    forward: int = 0
    backward: int = 0


def _prefixes(method: Method, p: Values, vit: backbone.Backbone, layer: int, t: int, input_trains: bool) -> _Prefixes:
    """What `Method.prefixes` makes at a block with `t` tokens, whose input needs a gradient if `input_trains`."""
    if method.prefixes is None or layer not in method.layers(vit.depth):
        return _Prefixes()
    x = torch.zeros(1, t, vit.width, device="meta", requires_grad=input_trains)
    with FlopCounterMode(display=False) as forward:
        made = method.prefixes(layer, p, x)
    trained = [value for value in made.values() if value.requires_grad]
    with FlopCounterMode(display=False) as backward:
        if trained:
            leaves = [value for value in (x, *p.values()) if value.requires_grad]
            torch.autograd.grad(trained, leaves, [torch.zeros_like(value) for value in trained], allow_unused=True)
    count = made["keys"].shape[1] if "keys" in made else 0
    # torch counts two operations for a multiply-add
    return _Prefixes(count, bool(trained), forward.get_total_flops() // 2, backward.get_total_flops() // 2)


def _trains_pixels(method: Method, p: Values, vit: backbone.Backbone) -> bool:
    """Whether the method's `pixels` depend on a trained value."""
    if method.pixels is None:
        return False
    return method.pixels(p, torch.zeros(1, 3, vit.image_size, vit.image_size, device="meta")).requires_grad


def _trained_backbone_tensors(method: Method, p: Values, vit: backbone.Backbone) -> dict[str, Tensor]:
    """The backbone's tensors that the method replaces by trained ones."""
    if method.backbone_weights is None:
        return {}
    tensors = method.backbone_weights(p, {name: value.to("meta") for name, value in vit.named_parameters()})
    return {name: value for name, value in tensors.items() if value.requires_grad}


def _lowest_block(tensors: Iterable[str], depth: int) -> int:
    """The lowest block that a tensor of `tensors` belongs to; -1 for the embedding, the depth if there is none."""
    names = [name.split(".") for name in tensors]
    blocks = [int(name[2]) if name[1] == "blocks" else -1 if "embed" in name[1] else depth for name in names]
    return min(blocks, default=depth)


def _for_weights(name: str, value: Tensor, tokens: int, read: int) -> int:
    """Multiply-adds of the gradient of a block's weight matrix: all tokens use keys and values, those read the rest."""
    if name.endswith("attn.qkv.weight"):
        return value.numel() // 3 * (read + 2 * tokens)
    if name.endswith(("attn.k_proj.weight", "attn.v_proj.weight")):
        return value.numel() * tokens
    return value.numel() * read


@dataclass(frozen=True)
class ImageCost:
    """Multiply-adds of one image in the backbone.

    ``training``: for each epoch, all phases and views together. ``text``: once in each step of a client, for the texts of all
    classes behind contexts that depend on trained values. ``fixed_text``: once in a client's round, behind the other contexts.
    ``features``: once for each client's image, whose prompt-free feature the client keeps, or 0 if training reads none.
    ``inference``: to classify one new image, where no feature is cached. ``choosing``: once for each of a client's images in a
    round, to compare the method's candidates.
    """

    training: int
    features: int
    inference: int
    choosing: int = 0
    text: int = 0
    fixed_text: int = 0


def _text(method: Method, spec: Mapping[str, Param], sizes: TextCost | None) -> tuple[int, int]:
    """Multiply-adds of the text tower in one step of a client, and once in its round."""
    if sizes is None or method.contexts is None or not trained_in(method, spec):
        return 0, 0
    method = method.at(0 if method.phases else None)
    p = {n: param.init.detach().to("meta").requires_grad_(param.trains) for n, param in spec.items()}
    p["class_text"] = torch.empty(len(sizes.tokens), sizes.embed_dim, device="meta")
    p["logit_scale"] = torch.empty((), device="meta")
    slots = method.contexts(p)
    live = {slot: value for slot, value in slots.items() if value.requires_grad}
    return sizes.step(live), sizes.step({slot: value for slot, value in slots.items() if slot not in live})


def image_cost(
    method: Method,
    spec: Mapping[str, Param],
    vit: backbone.Backbone,
    augment: Augment,
    text: TextCost | None = None,
) -> ImageCost:
    """Count what one image costs a client. Augmented images have no cached features."""
    touches, plain = method.touches(vit.depth), prompt_free(vit, method.query_after)
    reads_cache = not touches and augment == "none"
    trains = trained_in(method, spec)
    reads = method.uses_query or method.statistics is not None or (reads_cache and bool(trains))
    each_step, each_round = _text(method, spec, text)
    read = (None, *method.views) if method.reads_views else (None,)
    return ImageCost(
        training=training(method, spec, vit, reads_cache),
        features=plain if reads else 0,
        inference=sum(one_pass(method.at(view=view), spec, vit).forward for view in read)
        + (plain if touches and method.uses_query else 0),
        choosing=sum(one_pass(method.at(view=name), spec, vit).forward for name in method.candidates),
        text=each_step,
        fixed_text=each_round,
    )


def prompt_free(vit: backbone.Backbone, after: int | None = None) -> int:
    """Multiply-adds of the frozen backbone on one image, without any prompt, up to block `after` (None: the last)."""
    if after is None:
        return one_pass(Method(), {}, vit).forward
    t, width, mlp = vit.tokens, vit.width, block_cost(vit).mlp
    embedding = (vit.image_size // vit.patch_size) ** 2 * 3 * vit.patch_size**2 * width
    return embedding + (after + 1) * (4 * t * width**2 + t * mlp + 2 * t**2 * width)


def training(method: Method, spec: Mapping[str, Param], vit: backbone.Backbone, reads_cache: bool | None = None) -> int:
    """Multiply-adds of local training for one sample and epoch, all phases and views together.

    `reads_cache`: cached features replace forward passes; by default if the method changes nothing in the backbone.
    """
    cached = not method.touches(vit.depth) if reads_cache is None else reads_cache
    total = 0
    for number, names in enumerate(trained_in(method, spec)):
        phase = number if method.phases else None
        for view in (None, *method.views):
            cost = one_pass(method.at(phase, view), spec, vit, names)
            total += cost.backward + (0 if cached else cost.forward)
    return total


def chunk_images(cost: PassCost, device: torch.device, precision: str = "float32") -> int:
    """Images in one pass: on a CPU as many as keep the MLP's activations in cache, on a GPU as many as fill it and fit."""
    tokens = max(cost.tokens)
    if device.type == "cpu":
        return max(4, CPU_CACHE_BYTES // (tokens * cost.hidden * 4))
    fit = GPU_CHUNK_BYTES // max(1, cost.kept_bytes(precision))
    return max(1, min(GPU_CHUNK_TOKENS // tokens, fit))


def task_of(
    vit: backbone.Backbone,
    classes: int,
    class_counts: Tensor,
    seed: int,
    held_out: int = 0,
    rounds: int = 1,
    local: LocalConfig | None = None,
) -> Task:
    """The `Task` that `Method.params` receives, from the backbone and the clients' `class_counts` [clients, C]."""
    frozen = dict(vit.named_parameters())
    size = (vit.width, vit.depth, vit.patch_size)
    recipe = (local or LocalConfig()).model_dump()
    return Task(classes, len(class_counts), *size, class_counts, seed, vit.image_size, frozen, held_out, rounds, recipe)


@dataclass(frozen=True)
class Estimate:
    """Predicted multiply-adds of a run's clients and bytes of memory, both within a factor of about two."""

    multiply_adds: int
    memory_bytes: int


def estimate(planned: PlannedRun, plugins: Plugins, machine: Machine) -> Estimate:
    """Count a run before it starts, from its config, the size of its dataset and the shapes of its method.

    Nothing is downloaded, decoded or written. Raises DataError, also if a dataset is not prepared, and BackboneError.
    """
    run = planned.run
    extent = _extent(repr(sorted(run.dataset.items())), planned, plugins, machine)
    train, classes = extent.train, extent.classes
    vit = _architecture(run.backbone.name, run.backbone.image_size, run.backbone.weights, run.backbone.pool)
    method, aggregation = plugins.make("method", run.method), plugins.make("aggregation", run.aggregation)
    counts = torch.ones(run.clients.number, classes)
    task, text = task_of(vit, classes, counts, seed=0, rounds=run.rounds, local=run.local), None
    if method.reads_text and two_towers.is_two_towers(run.backbone.name):
        from fedbench.text.text_cost import planned_text

        names = extent.samples.class_names if extent.samples is not None else ()
        task, text = planned_text(task, run.backbone.name, run.backbone.weights, names or ("class",) * classes)
    spec = parameters(method, aggregation, task)
    cost = one_pass(method, spec, vit)
    of_client = train / run.clients.number * (1 - run.clients.validation)  # samples
    taking_part = run.clients.per_round * (1 - run.clients.dropout)
    passes = of_client * taking_part * run.local.epochs * (1 - run.clients.stragglers / 2) * run.rounds
    first = of_client * min(run.clients.number, run.clients.per_round * run.rounds)
    each = image_cost(method, spec, vit, run.local.augment, text)
    chunk = machine.chunk_images or chunk_images(cost, torch.device("cpu"))
    # A block keeps about 8 D + 2 H numbers a token for its backward pass; a client three copies of its values and memory.
    activations = 4 * chunk * sum(cost.tokens) * (8 * cost.width + 2 * cost.hidden)
    values = 4 * sum(param.init.numel() for param in spec.values()) * (4 * run.clients.per_round + run.clients.number)
    pixels = (train + extent.test) * 3 * vit.image_size**2
    frozen = 4 * sum(value.numel() for value in vit.parameters())
    memory = PROCESS_BYTES + activations + values + pixels + frozen
    looks = of_client * taking_part * run.rounds
    steps = passes / run.local.batch_size
    arithmetic = passes * each.training + first * each.features + looks * each.choosing + steps * each.text
    arithmetic += taking_part * run.rounds * each.fixed_text
    return Estimate(int(arithmetic), memory)


_extents: dict[str, data.Extent] = {}


def _extent(key: str, planned: PlannedRun, plugins: Plugins, machine: Machine) -> data.Extent:
    if key not in _extents:
        _extents[key] = plugins.make("dataset", planned.run.dataset).extent(machine.data)
    return _extents[key]


@lru_cache(maxsize=4)
def _architecture(
    name: str, image_size: int | None, weights: Path | None, pool: str | None = None
) -> backbone.Backbone:
    sizes_in_file = weights if two_towers.is_two_towers(name) else None
    return backbone.make(name, sizes_in_file, image_size=image_size, pretrained=False, pool=pool)
