"""Arithmetic and memory of a run, counted from shapes: multiply-adds of a pass, the chunk that fits a cache, estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedbench import data
from fedbench.method import Method, Param, Task, Values
from fedbench.method.phases import trained_in
from fedbench.plan.config import Machine, PlannedRun
from fedbench.plan.plugins import Plugins
from fedbench.run.server import parameters
from fedbench.vit import backbone

CPU_CACHE_BYTES = 4 << 20  # the widest activation of a chunk should stay in a shared cache of this size
GPU_CHUNK_TOKENS = 200_000
PROCESS_BYTES = 700 << 20  # an interpreter with torch, timm and torchvision in it


@dataclass(frozen=True)
class PassCost:
    """Multiply-adds of one image, and its tokens at each block.

    ``forward``: through the whole backbone (0 where cached features serve); ``backward``: from the lowest block on that a
    trained value enters, of activations only where the backbone is frozen.
    """

    forward: int
    backward: int
    tokens: tuple[int, ...]
    width: int
    hidden: int


def one_pass(
    method: Method, spec: Mapping[str, Param], vit: backbone.Backbone, trained: Iterable[str] | None = None
) -> PassCost:
    """Count one image of one client: attention 4 T D^2 + 2 T^2 D, MLP 2 T D H a block, and the patch embedding;
    in the last block only the tokens that are read have queries, a projection and an MLP.

    Backward: of the activations from the lowest block on that a `trained` value enters (all that train if not given), and
    of the backbone's own tensors where the method trains those. Slot lengths, and what depends on a trained value, are
    found by asking the hooks for a single sample, without running the backbone.
    """
    trained = {n for n, param in spec.items() if param.trains} if trained is None else set(trained)
    p = {n: v.init.detach().clone().requires_grad_(n in trained) for n, v in spec.items()}
    zero = torch.zeros(1, vit.width)
    patches = (vit.image_size // vit.patch_size) ** 2
    prefix = int(vit.vit.num_prefix_tokens)
    block: Any = vit.vit.blocks[0]
    width, hidden = vit.width, int(block.mlp.fc1.out_features)
    embedding = patches * 3 * vit.patch_size**2 * width
    lengths: dict[str, int] = {}
    tokens: list[int] = []
    forward, backward = embedding, 0
    layers = method.layers(vit.depth)
    own = _own_weights(method, p, vit)
    lowest = _lowest_weight(own, vit.depth)
    entered = vit.depth  # the lowest block that a gradient goes through to something before it
    if method.pixels is not None and method.pixels(p, torch.zeros(1, 3, vit.image_size, vit.image_size)).requires_grad:
        lowest, entered, backward = -1, -1, embedding
    for layer in range(vit.depth):
        if layer in layers:
            slots = method.prompts(layer, p, zero, zero if method.uses_query else None)
            lengths |= {name: value.shape[1] for name, value in slots.items()}
            if any(value.requires_grad for value in slots.values()):
                lowest, entered = min(lowest, layer), min(entered, layer)
        t = prefix + patches + sum(lengths.values())
        tokens.append(t)
        read = t  # tokens that go on from this block: after the last only what the head reads
        if layer == vit.depth - 1 and vit.lean:
            read = 1 + (sum(lengths.values()) if method.reads_slots else 0)
        linear = 2 * t * width**2 + read * (2 * width**2 + 2 * width * hidden)
        attention = 2 * t * read * width
        forward += linear + attention
        if layer >= lowest:
            backward += linear + 2 * attention
        at = f"blocks.{layer}."
        backward += sum(_for_weights(n, v, t, read) for n, v in own.items() if at in n and v.dim() == 2)
        if layer == lowest < entered and f"vit.{at}attn.qkv.weight" in own and f"vit.{at}norm1.weight" not in own:
            backward -= 3 * t * width**2  # nothing below asks for the gradient of what enters this product
    backward += embedding * any("patch_embed.proj.weight" in name for name in own)
    return PassCost(forward if method.touches(vit.depth) else 0, backward, tuple(tokens), width, hidden)


def _own_weights(method: Method, p: Values, vit: backbone.Backbone) -> dict[str, Tensor]:
    """The backbone's tensors in whose place the method has trained ones."""
    if method.backbone_weights is None:
        return {}
    own = method.backbone_weights(p, dict(vit.named_parameters()))
    return {name: value for name, value in own.items() if value.requires_grad}


def _lowest_weight(own: Iterable[str], depth: int) -> int:
    """The lowest block of which a tensor of `own` is; -1: the embedding; the depth where there is none."""
    names = [name.split(".") for name in own]
    blocks = [int(name[2]) if name[1] == "blocks" else -1 if "embed" in name[1] else depth for name in names]
    return min(blocks, default=depth)


def _for_weights(name: str, value: Tensor, tokens: int, read: int) -> int:
    """Multiply-adds of the gradient of a block's weight matrix, through which all tokens go (keys, values) or those read."""
    if name.endswith("attn.qkv.weight"):
        return value.numel() // 3 * (read + 2 * tokens)
    return value.numel() * read


def training(method: Method, spec: Mapping[str, Param], vit: backbone.Backbone) -> int:
    """Multiply-adds of local training for one sample and epoch, all phases and views together."""
    total = 0
    for number, names in enumerate(trained_in(method, spec)):
        phase = number if method.phases else None
        for view in (None, *method.views):
            one = one_pass(method.at(phase, view), spec, vit, names)
            total += one.forward + one.backward
    return total


def chunk_images(cost: PassCost, device: torch.device) -> int:
    """Images in one pass: on a CPU what keeps the MLP's activations in cache, on a GPU what fills it."""
    tokens = max(cost.tokens)
    if device.type == "cpu":
        return max(4, CPU_CACHE_BYTES // (tokens * cost.hidden * 4))
    return max(32, GPU_CHUNK_TOKENS // tokens)


def task_of(vit: backbone.Backbone, classes: int, class_counts: Tensor, seed: int, held_out: int = 0) -> Task:
    """What a method may know: of the backbone, and of the clients' `class_counts` [clients, C]."""
    frozen = dict(vit.named_parameters())
    size = (vit.width, vit.depth, vit.patch_size)
    return Task(classes, len(class_counts), *size, class_counts, seed, vit.image_size, frozen, held_out)


@dataclass(frozen=True)
class Estimate:
    """What a run will take: multiply-adds of its local training, and bytes of memory, both to a factor of about two."""

    multiply_adds: int
    memory_bytes: int


def estimate(planned: PlannedRun, found: Plugins, machine: Machine) -> Estimate:
    """Count a run before it starts, from its config, the size of its dataset and the shapes of its method.

    Nothing is fetched, decoded or written. Raises DataError, also where a dataset is not prepared, and BackboneError.
    """
    run = planned.run
    extent = _extent(repr(sorted(run.dataset.items())), planned, found, machine)
    train, classes = extent.train, extent.classes
    vit = _architecture(run.backbone.name, run.backbone.image_size)
    method, aggregation = found.make("method", run.method), found.make("aggregation", run.aggregation)
    counts = torch.ones(run.clients.number, classes)
    spec = parameters(
        method,
        aggregation,
        task_of(vit, classes, counts, seed=0),
    )
    cost = one_pass(method, spec, vit)
    seen = train / run.clients.number * (1 - run.clients.validation) * run.clients.per_round * run.local.epochs
    chunk = machine.chunk_images or chunk_images(cost, torch.device("cpu"))
    # A block keeps about 8 D + 2 H numbers a token for its backward pass; a client three copies of its values and memory.
    activations = 4 * chunk * sum(cost.tokens) * (8 * cost.width + 2 * cost.hidden)
    values = 4 * sum(param.init.numel() for param in spec.values()) * (4 * run.clients.per_round + run.clients.number)
    pixels = (train + extent.test) * 3 * vit.image_size**2
    weights = 4 * sum(value.numel() for value in vit.parameters())
    memory = PROCESS_BYTES + activations + values + pixels + weights
    return Estimate(int(seen * run.rounds * training(method, spec, vit)), memory)


_extents: dict[str, data.Extent] = {}


def _extent(key: str, planned: PlannedRun, found: Plugins, machine: Machine) -> data.Extent:
    if key not in _extents:
        _extents[key] = found.make("dataset", planned.run.dataset).extent(machine.data)
    return _extents[key]


@lru_cache(maxsize=4)
def _architecture(name: str, image_size: int | None) -> backbone.Backbone:
    return backbone.make(name, image_size=image_size, pretrained=False)
