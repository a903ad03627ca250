"""A method on the frozen backbone for K stacked clients: one pass of the backbone on the flattened K*B images."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedbench.backbone import Backbone
from fedbench.images import Augment, Images
from fedbench.method import Method, Param, log_prior
from fedbench.stacked import Clients, Stacked, each_client


@dataclass(frozen=True)
class Pass:
    """What one pass gives, all stacked: logits [K, B, C], the read tokens [K, B, ...], taps and query [K, B, D]."""

    logits: Tensor
    out: dict[str, Tensor]
    taps: dict[int, Tensor]
    query: Tensor | None


@dataclass(frozen=True)
class Cohort:
    """The shared and frozen things of a run, and the method whose hooks are mapped over clients."""

    method: Method
    spec: Mapping[str, Param]
    backbone: Backbone
    images: Images
    labels: Tensor  # [N]
    features: Tensor | None  # [N, D] prompt-free, where the method reads them
    clients: Clients = "stacked"
    autocast: bool = False

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The blocks that prompts enter."""
        return self.method.layers(self.backbone.depth)

    @cached_property
    def taps(self) -> tuple[int, ...]:
        """The blocks whose entering CLS token is observed."""
        return self.method.taps(self.backbone.depth)

    def dims(self, p: Mapping[str, Tensor]) -> dict[str, int | None]:
        """The client axis of each value: none for what all clients read of the server."""
        return {name: None if self.spec[name].home == "server" else 0 for name in p}

    def each(self, hook: Any, args: tuple[Any, ...], dims: tuple[Any, ...]) -> Any:
        """`hook` for every client."""
        return each_client(hook, args, dims, self.clients)

    def forward(
        self,
        p: Stacked,
        index: Tensor,
        add_prior: bool,
        augment: Augment = "none",
        flip: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Pass:
        """Run the samples `index` [K, B] through the backbone with each client's prompts, and through its head.

        `p` holds the clients' values [K, ...] and the server's [...]; `add_prior` adds each client's log class prior.
        """
        k, b = index.shape
        dims, method = self.dims(p), self.method

        def fold(x: Tensor) -> Tensor:
            return x.view(k, b, *x.shape[1:])

        query = self.features[index] if self.features is not None else None  # [K, B, D]
        taps: dict[int, Tensor] = {}
        if not self.layers and not self.taps and query is not None and augment == "none":
            out = {"cls": query}  # nothing enters the backbone, so its output is known
        else:

            def prompts_at(layer: int, cls: Tensor) -> dict[str, Tensor]:
                slots = self.each(
                    lambda p_, cls_, query_: method.prompts(layer, p_, cls_, query_),
                    (p, fold(cls), query),
                    (dims, 0, None if query is None else 0),
                )
                return {name: value.flatten(0, 1).to(cls.dtype) for name, value in slots.items()}

            flat = index.flatten()
            pixels = self.images.batch(
                flat, augment, None if flip is None else flip.flatten(), None if shift is None else shift.flatten(0, 1)
            )
            mixed = torch.autocast(pixels.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
            with mixed:
                read, tapped = self.backbone(pixels, self.layers, prompts_at, self.taps, self.method.reads_slots)
            out = {name: fold(value.to(self.images.dtype)) for name, value in read.items()}
            taps = {layer: fold(value) for layer, value in tapped.items()}
        logits = self.each(method.logits, (p, out), (dims, 0))
        if add_prior:
            logits = logits + log_prior(p["prior"])[:, None]
        return Pass(logits, out, taps, query)
