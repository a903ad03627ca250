"""The sizes and frozen tensors that a method receives before a run, and the random streams of its initial values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedbench.base import rng
from fedbench.method.param import Values


@dataclass(frozen=True)
class Task:
    """Sizes of the task and the backbone, and the frozen tensors.

    ``class_counts`` [clients, C]: label histograms of the clients' training samples. ``frozen``: the backbone's tensors by
    name. ``image_size`` and ``patch_size`` in pixels. Initial values come from random streams named after the parameter, so
    methods that share a parameter's name, shape and distribution start from the same values.
    """

    num_classes: int
    num_clients: int
    width: int
    depth: int
    patch_size: int
    class_counts: Tensor
    seed: int
    image_size: int = 0
    frozen: Values = field(default_factory=dict)
    held_out: int = 0  # clients that never train
    rounds: int = 1  # of the whole run
    local: Mapping[str, Any] = field(default_factory=dict)  # the run's block `local` with all defaults
    text_width: int = 0  # D_text of the text tower; 0: the method does not read text
    class_text: Tensor | None = None  # [C, E] features of the template's texts, of length 1, if the method reads text

    def normal(self, name: str, *shape: int, std: float) -> Tensor:
        """N(0, std^2) draws of the given shape, from the stream of the parameter `name`."""
        return torch.randn(*shape, generator=rng.torch_stream(self.seed, "init", name)) * std

    def uniform(self, name: str, *shape: int, bound: float) -> Tensor:
        """U(-bound, bound) draws of the given shape, from the stream of the parameter `name`."""
        return (torch.rand(*shape, generator=rng.torch_stream(self.seed, "init", name)) * 2 - 1) * bound

    def per_client_normal(self, name: str, *shape: int, std: float) -> Callable[[Tensor], Tensor]:
        """For `Param.rows`: a function from clients [K] to N(0, std^2) draws [K, *shape], each client from its own stream."""

        def rows(clients: Tensor) -> Tensor:
            values = torch.empty(len(clients), *shape)
            for row, k in zip(values, clients.tolist(), strict=True):
                row.normal_(std=std, generator=rng.torch_stream(self.seed, "init", name, k))
            return values

        return rows

    def prompt_init(self, name: str, *shape: int) -> Tensor:
        """VPT's initial prompts: U(-v, v) with v = sqrt(6 / (3 patch^2 + D)) (Jia et al. 2022, official code)."""
        return self.uniform(name, *shape, bound=math.sqrt(6 / (3 * self.patch_size**2 + self.width)))
