"""Arithmetic and memory of a run, counted from shapes: multiply-adds of a pass, the chunk that fits a cache, estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from fedbench import backbone, data
from fedbench.config import Machine, PlannedRun
from fedbench.method import Method, Param, Task
from fedbench.plugins import Plugins
from fedbench.server import parameters

CPU_CACHE_BYTES = 4 << 20  # the widest activation of a chunk should stay in a shared cache of this size
GPU_CHUNK_TOKENS = 200_000
PROCESS_BYTES = 700 << 20  # an interpreter with torch, timm and torchvision in it


@dataclass(frozen=True)
class PassCost:
    """Multiply-adds of one image, and its tokens at each block.

    ``forward``: through the whole backbone (0 where cached features serve); ``backward``: of activations only, from the
    first prompted block on, since frozen weights need no gradient.
    """

    forward: int
    backward: int
    tokens: tuple[int, ...]
    width: int
    hidden: int


def one_pass(method: Method, spec: Mapping[str, Param], vit: backbone.Backbone) -> PassCost:
    """Count one image of one client: attention 4 T D^2 + 2 T^2 D, MLP 2 T D H a block, and the patch embedding;
    in the last block only the tokens that are read have queries, a projection and an MLP.

    Slot lengths are found by asking the method for prompts of a single sample, without running the backbone.
    """
    p = {name: (param.init[0] if param.rows else param.init) for name, param in spec.items()}
    zero = torch.zeros(1, vit.width)
    patches = (vit.image_size // vit.patch_size) ** 2
    prefix = int(vit.vit.num_prefix_tokens)
    block: Any = vit.vit.blocks[0]
    width, hidden = vit.width, int(block.mlp.fc1.out_features)
    lengths: dict[str, int] = {}
    tokens: list[int] = []
    forward = patches * 3 * vit.patch_size**2 * width
    backward, trained = 0, any(param.trains for param in spec.values())
    layers, taps = method.layers(vit.depth), method.taps(vit.depth)
    for layer in range(vit.depth):
        if layer in layers:
            slots = method.prompts(layer, p, zero, zero if method.uses_query else None)
            lengths |= {name: value.shape[1] for name, value in slots.items()}
        t = prefix + patches + sum(lengths.values())
        tokens.append(t)
        read = t  # tokens that go on from this block: after the last only what the head reads
        if layer == vit.depth - 1 and vit.lean:
            read = 1 + (sum(lengths.values()) if method.reads_slots else 0)
        linear = 2 * t * width**2 + read * (2 * width**2 + 2 * width * hidden)
        attention = 2 * t * read * width
        forward += linear + attention
        if trained and layers and layer >= min(layers):
            backward += linear + 2 * attention
    if not layers and not taps:
        forward = 0
    return PassCost(forward, backward, tuple(tokens), width, hidden)


def chunk_images(cost: PassCost, device: torch.device) -> int:
    """Images in one pass: on a CPU what keeps the MLP's activations in cache, on a GPU what fills it."""
    tokens = max(cost.tokens)
    if device.type == "cpu":
        return max(16, CPU_CACHE_BYTES // (tokens * cost.hidden * 4))
    return max(32, GPU_CHUNK_TOKENS // tokens)


@dataclass(frozen=True)
class Estimate:
    """What a run will take: multiply-adds of its local training, and bytes of memory, both to a factor of about two."""

    multiply_adds: int
    memory_bytes: int


def estimate(planned: PlannedRun, found: Plugins, machine: Machine) -> Estimate:
    """Count a run before it starts, from its config, the size of its dataset and the shapes of its method.

    Raises DataError and BackboneError as the run itself would.
    """
    run = planned.run
    samples = _samples(repr(sorted(run.dataset.items())), planned, found, machine)
    train, classes = int((~samples.is_test).sum()), samples.num_classes
    vit = _architecture(run.backbone.name, run.backbone.image_size)
    method, aggregation = found.make("method", run.method), found.make("aggregation", run.aggregation)
    counts = torch.ones(run.clients.number, classes)
    spec = parameters(
        method,
        aggregation,
        Task(classes, run.clients.number, vit.width, vit.depth, vit.patch_size, counts, seed=0),
    )
    cost = one_pass(method, spec, vit)
    seen = train / run.clients.number * (1 - run.clients.validation) * run.clients.per_round * run.local.epochs
    phases = len(method.phases or (1,)) if any(param.trains for param in spec.values()) else 0
    chunk = machine.chunk_images or chunk_images(cost, torch.device("cpu"))
    # A block keeps about 8 D + 2 H numbers a token for its backward pass; a client three copies of its values and memory.
    activations = 4 * chunk * sum(cost.tokens) * (8 * cost.width + 2 * cost.hidden)
    values = 4 * sum(param.init.numel() for param in spec.values()) * (4 * run.clients.per_round + run.clients.number)
    pixels = len(samples.labels) * 3 * vit.image_size**2
    weights = 4 * sum(value.numel() for value in vit.parameters())
    memory = PROCESS_BYTES + activations + values + pixels + weights
    return Estimate(int(seen * phases * run.rounds * (cost.forward + cost.backward)), memory)


_datasets: dict[str, data.Samples] = {}


def _samples(key: str, planned: PlannedRun, found: Plugins, machine: Machine) -> data.Samples:
    if key not in _datasets:
        _datasets[key] = found.make("dataset", planned.run.dataset).load(machine.data)
    return _datasets[key]


@lru_cache(maxsize=4)
def _architecture(name: str, image_size: int | None) -> backbone.Backbone:
    return backbone.make(name, image_size=image_size, pretrained=False)
