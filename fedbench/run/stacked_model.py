"""A method on the frozen backbone for K stacked clients: one pass of the backbone on the flattened K*B images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fedbench.vit.backbone import Backbone
from fedbench.vit.compiled import Compiled
from fedbench.vit.token_cache import Entering
from fedbench.vit.images import Augment, Images
from fedbench.method import HookError, Method, Param, log_prior, told
from fedbench.vit.thread_map import Item, Result, spread
from fedbench.run.stacked import Clients, Stacked, each_client, pick


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
    compiled: Compiled | None = None  # what runs the blocks that all clients share, where that is wanted
    entering: Entering | None = None  # what is known of images that are not augmented, instead of their pixels
    several_servers: bool = False  # the clients are of several runs: what they read of their server has a row for each

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The blocks that prompts enter."""
        return self.method.layers(self.backbone.depth)

    @cached_property
    def taps(self) -> tuple[int, ...]:
        """The blocks whose entering CLS token is observed."""
        return self.method.taps(self.backbone.depth)

    def dims(self, p: Mapping[str, Tensor]) -> dict[str, int | None]:
        """The client axis of each value: none for what all clients read of the one server."""
        return {name: None if self.spec[name].home == "server" and not self.several_servers else 0 for name in p}

    @cached_property
    def frozen(self) -> dict[str, Tensor]:
        """The backbone's tensors by name."""
        return dict(self.backbone.named_parameters())

    def each(self, hook: Any, args: tuple[Any, ...], dims: tuple[Any, ...], call: Any = None) -> Any:
        """`hook` for every client, or `call` in its stead. Raises HookError where it fails."""
        try:
            return each_client(call or hook, args, dims, self.clients)
        except (torch.OutOfMemoryError, HookError):
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise HookError(f"{told(hook)}: {type(error).__name__}: {error}") from error

    def spread(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``[work(item) for item in items]``, pieces of clients' work that may run side by side; see `fedbench.vit.thread_map`."""
        # torch.func puts a client's weights into the one backbone of all; what is compiled has threads of its own.
        if self.method.backbone_weights is not None or self.compiled is not None:
            return [work(item) for item in items]
        return spread(work, items, self.labels.device)

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
        Raises HookError where a hook fails or gives another shape than it should.
        """
        k, b = index.shape
        dims, method = self.dims(p), self.method

        def fold(x: Tensor) -> Tensor:
            return x.view(k, b, *x.shape[1:])

        query = self.features[index] if self.features is not None else None  # [K, B, D]
        taps: dict[int, Tensor] = {}
        if not method.touches(self.backbone.depth) and query is not None and augment == "none":
            out = {"cls": query}  # nothing enters the backbone, so its output is known
        else:
            flat = index.flatten()
            if self.entering is not None and augment == "none":
                given, start = self.entering(flat), self.entering.layer
            else:
                drawn = (None if flip is None else flip.flatten(), None if shift is None else shift.flatten(0, 1))
                given, start = self.images.batch(flat, augment, *drawn), 0
            if method.pixels is not None:
                changed = self.each(method.pixels, (p, fold(given)), (dims, 0))
                given = _expect(method.pixels, changed, (k, b, *given.shape[1:]), "[B, 3, S, S]").flatten(0, 1)
            with torch.autocast(given.device.type, torch.bfloat16, enabled=self.autocast):
                if method.backbone_weights is None:
                    read, tapped = self._together(p, fold(given), query, start)
                else:
                    read, tapped = self._one_by_one(p, fold(given), query)
            out = {name: fold(value.to(self.images.dtype)) for name, value in read.items()}
            taps = {layer: fold(value) for layer, value in tapped.items()}
        logits = self.each(method.logits, (p, out), (dims, 0))
        _expect(method.logits, logits, (k, b, None), "[B, C]")
        if add_prior:
            logits = logits + log_prior(p["prior"])[:, None]
        return Pass(logits, out, taps, query)

    def _together(
        self, p: Stacked, given: Tensor, query: Tensor | None, start: int = 0
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """One pass of the frozen backbone for all clients; pixels [K, B, 3, S, S] or what enters `start` [K, B, 1+T, D]."""
        k, b = given.shape[:2]
        dims, method = self.dims(p), self.method

        def prompts_at(layer: int, cls: Tensor) -> dict[str, Tensor]:
            slots = self.each(
                method.prompts,
                (p, cls.view(k, b, -1), query),
                (dims, 0, None if query is None else 0),
                call=lambda p_, cls_, query_: method.prompts(layer, p_, cls_, query_),
            )
            for name, value in slots.items():
                _expect(method.prompts, value, (k, b, None, self.backbone.width), "[B, P, D]", f", slot {name!r}")
            return {name: value.flatten(0, 1).to(cls.dtype) for name, value in slots.items()}

        inputs = (given.flatten(0, 1), self.layers, prompts_at, self.taps, method.reads_slots, self.compiled, start)
        return self.backbone(*inputs)  # type: ignore[no-any-return]

    def _one_by_one(
        self, p: Stacked, pixels: Tensor, query: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """A pass for each client with backbone weights of its own."""
        dims, method, parts = self.dims(p), self.method, []
        for k, images in enumerate(pixels):
            mine = pick(p, dims, k)
            tensors = method.backbone_weights(mine, self.frozen)
            for name, value in tensors.items():
                if name not in self.frozen or value.shape != self.frozen[name].shape:
                    here = list(self.frozen[name].shape) if name in self.frozen else "no such tensor"
                    raise HookError(
                        f"{told(method.backbone_weights)}: {name!r} of shape {list(value.shape)}, expected {here}"
                    )

            def prompts_at(layer: int, cls: Tensor, mine: Any = mine, k: int = k) -> Any:
                return method.prompts(layer, mine, cls, None if query is None else query[k])

            inputs = (images, self.layers, prompts_at, self.taps, method.reads_slots)
            parts.append(functional_call(self.backbone, tensors, inputs))
        read, tapped = ({name: torch.cat([part[i][name] for part in parts]) for name in parts[0][i]} for i in (0, 1))
        return read, tapped


def _expect(hook: Any, value: Any, shape: tuple[int | None, ...], words: str, more: str = "") -> Tensor:
    """`value`, if it is a tensor [K, ...] of that shape (None: any length). Raises HookError."""
    if not isinstance(value, Tensor):
        raise HookError(f"{told(hook)}{more}: expected a tensor {words}, given {type(value).__name__}")
    if len(value.shape) != len(shape) or any(s is not None and v != s for v, s in zip(value.shape, shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape[1:])
        raise HookError(
            f"{told(hook)}{more}: expected {words} = [{wanted}] for one client, given {list(value.shape[1:])}"
        )
    return value
