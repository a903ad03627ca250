"""A method on the frozen backbone for K stacked clients: the backbone runs once on the flattened K*B images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedbench.method import HookError, Method, Param, log_prior
from fedbench.method.hooks import describe
from fedbench.run.shared_prefix import shared_blocks
from fedbench.run.stacked import ClientMode, Stacked, call_hook, each_client, pick, rows
from fedbench.vit.backbone import Backbone, PartialPass, PrefixesAt, PromptsAt
from fedbench.vit.compiled import CompiledBlocks
from fedbench.vit.images import Augment, Images, sent_to
from fedbench.vit.thread_map import Item, Result, thread_map
from fedbench.vit.token_cache import CachedTokens

if TYPE_CHECKING:
    from fedbench.text.class_texts import ClassTexts

FROZEN_TEXT = ("class_text", "logit_scale")  # what all clients read of the text tower
# The pairs of values that `prefixes` may return, and their second axis (None: P tokens, of any number).
PREFIXES: dict[tuple[str, str], str | None] = {("keys", "values"): None, ("added_keys", "added_values"): "T"}
# Names that `out` or `taps` hold beside the slots.
RESERVED = ("cls", "patches", "image", "logits", "loss", "y", "weight")


@dataclass(frozen=True)
class Pass:
    """The results of one pass, all stacked: logits [K, B, C], the tokens read [K, B, ...], taps and query [K, B, D]."""

    logits: Tensor
    out: dict[str, Tensor]
    taps: dict[int, Tensor]
    query: Tensor | None


@dataclass(frozen=True, kw_only=True)
class StackedModel:
    """The frozen parts of a run, which all clients share, and the method, whose hooks are mapped over clients."""

    method: Method
    spec: Mapping[str, Param]
    backbone: Backbone
    images: Images
    labels: Tensor  # [N]
    features: Tensor | None  # [N, D] prompt-free, if the method reads them
    mode: ClientMode = "stacked"
    autocast: bool = False
    compiled: CompiledBlocks | None = None  # runs the blocks that all clients share, if compiled ones are wanted
    cached_tokens: CachedTokens | None = None  # stands in for the pixels of images that are not augmented
    per_client_server: bool = (
        False  # clients of several runs: the values that they read of their servers have a row for each client
    )
    text: ClassTexts | None = None  # the class names in the text tower, if the method reads text

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The blocks that prompts enter."""
        return self.method.layers(self.backbone.depth)

    @cached_property
    def taps(self) -> tuple[int, ...]:
        """The blocks whose entering CLS token (or mean patch token) is observed."""
        return self.method.taps(self.backbone.depth)

    @cached_property
    def frozen(self) -> dict[str, Tensor]:
        """The backbone's tensors by name."""
        return dict(self.backbone.named_parameters())

    def sample_index(self, numbers: NDArray[np.int64]) -> Tensor:
        """Sample numbers for `forward`: on the device, or on the host if each pass reads its samples there.

        With numbers in the right place, a pass does not wait for the device.
        """
        if self.images.resident and self.cached_tokens is None:
            return sent_to(self.labels.device, numbers)
        index = torch.from_numpy(numbers)
        return index.pin_memory() if self.labels.device.type == "cuda" else index

    def on_device(self, index: Tensor) -> Tensor:
        """A `sample_index` on the device."""
        return index.to(self.labels.device, non_blocking=True)

    def dims(self, p: Mapping[str, Tensor]) -> dict[str, int | None]:
        """The client axis of each value; None for what all clients read of their common server."""
        common = set() if self.per_client_server else {n for n, param in self.spec.items() if param.home == "server"}
        return {name: None if name in common or name in FROZEN_TEXT else 0 for name in p}

    def read_rows(self, read: Stacked, clients: slice) -> Stacked:
        """The server's values that the given clients read."""
        return rows(read, clients) if self.per_client_server else read

    def with_text(self, p: Stacked, fixed: bool = False, compare: bool = False) -> Stacked:
        """`p` with the text features ``text.<slot>`` [K, C, E] of the clients' contexts, if the method reads text.

        `fixed`: only of contexts that need no gradient; `compare` as in `ClassTexts.features`. Features that `p` holds already
        are not computed again. Raises HookError if `contexts` fails or returns another shape than it should.
        """
        if self.text is None or FROZEN_TEXT[0] in p:
            return p
        p = p | dict(zip(FROZEN_TEXT, (self.text.template, self.text.side.scale), strict=True))
        hook, texts = self.method.contexts, self.text
        slots = {} if hook is None else self.each(hook, (p,), (self.dims(p),))
        features = {}
        for slot, value in slots.items():
            if f"text.{slot}" in p or (fixed and value.requires_grad):
                continue
            shape = (None, *[len(texts.names)] * (value.dim() == 4), None, texts.words.shape[-1])
            _expect(hook, value, shape, "[P, D_text] or [C, P, D_text]", f", slot {slot!r}")
            features[f"text.{slot}"] = call_hook(hook, lambda value=value: texts.features(value, compare))  # type: ignore[misc]
        return p | features

    def prepared(self, values: Stacked, read: Stacked) -> tuple[Stacked, Stacked]:
        """`values` {name: [K, ...]} and `read` for several forward passes, with the text features computed once."""
        if self.text is None:
            return values, read
        p = self.with_text(values | read, compare=True)
        dims = self.dims(p)
        return {n: v for n, v in p.items() if dims[n] == 0}, {n: v for n, v in p.items() if dims[n] is None}

    def each(self, hook: Any, args: tuple[Any, ...], dims: tuple[Any, ...], call: Any = None) -> Any:
        """`hook`, or `call` in its place, for every client. Hooks run outside autocast. Raises HookError if it fails."""
        with self._without_autocast():
            return call_hook(hook, lambda: each_client(call or hook, args, dims, self.mode))

    def _without_autocast(self) -> torch.autocast:
        return torch.autocast(self.labels.device.type, enabled=False)

    def thread_map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``[work(item) for item in items]``, side by side where possible; see `fedbench.vit.thread_map`."""
        # torch.func puts each client's weights into the one backbone, and compiled blocks use their own threads.
        if self.method.backbone_weights is not None or self.compiled is not None:
            return [work(item) for item in items]
        return thread_map(work, items, self.labels.device)

    def forward(
        self,
        p: Stacked,
        index: Tensor,
        add_prior: bool,
        augment: Augment = "none",
        flip: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Pass:
        """Run the samples `index` [K, B] (a `sample_index`) through the backbone with each client's prompts, and its head.

        `p` holds the clients' values [K, ...] and the server's [...]; `add_prior` adds each client's log class prior.
        `flip` [K, B] and `shift` [K, B, 2] are the draws of the augmentation.
        Raises HookError if a hook fails or returns another shape than it should.
        """
        p, query = self.with_text(p), self._query(index)
        if self._is_known(query, augment):
            return self._finished(p, {"cls": query}, {}, query, add_prior)
        entering, first_block = self._entering(index, augment, flip, shift)
        read, taps = self._through_backbone(p, entering, first_block, query)
        for view, model in self.views_read.items():
            read[f"{view}.cls"] = model._through_backbone(p, entering, first_block, query)[0]["cls"]
        return self._finished(p, read, taps, query, add_prior)

    def forward_versions(self, versions: Sequence[Stacked], index: Tensor, add_prior: bool) -> list[Pass]:
        """``[self.forward(p, index, add_prior) for p in versions]`` for versions that differ in local values only.

        The first `shared_blocks`, which read no local value, run once. The first version has the numbers of `forward` to the
        last bit. Raises HookError.
        """
        query = self._query(index)
        if self._is_known(query) or len(versions) == 1 or not self.shared_blocks or self.views_read:
            return [self.forward(p, index, add_prior) for p in versions]
        versions = [self.with_text(p) for p in versions]
        spec = self.spec
        common = {n: value for n, value in versions[0].items() if n in spec and spec[n].home != "local"}
        entering, first_block = self._entering(index, "none", None, None)
        if self.shared_blocks == self.backbone.depth:
            read, taps = self._through_backbone(common, entering, first_block, query)
            return [self._finished(p, read, taps, query, add_prior) for p in versions]
        begun: PartialPass | Tensor
        begun, passes = _begun(self._changed_pixels(common, entering), first_block), []
        with self._autocast():
            prompts_at, prefixes_at = (
                self._prompts_at(common, query, *index.shape),
                self._prefixes_at(common, *index.shape),
            )
            begun = self.backbone.partial_pass(
                begun, self.shared_blocks, self.layers, prompts_at, self.taps, self.compiled, prefixes_at
            )
        for p in versions:
            with self._autocast():
                out, tapped = self._shared_pass(p, begun, query, *index.shape)
            passes.append(self._finished(p, *self._per_client(out, tapped, *index.shape), query, add_prior))
        return passes

    @cached_property
    def shared_blocks(self) -> int:
        """How many of the first blocks compute the same for clients that differ in their local values."""
        local = {name for name, param in self.spec.items() if param.home == "local"}
        return shared_blocks(self.method, self.spec, self.backbone, local)

    @cached_property
    def views_read(self) -> dict[str, StackedModel]:
        """The model in each view that `logits` reads."""
        method = self.method
        views = method.views if method.reads_views else ()
        return {view: replace(self, method=method.at(method.phase, view)) for view in views}

    def _query(self, index: Tensor) -> Tensor | None:
        """The prompt-free features [K, B, D], if the method reads them."""
        return None if self.features is None else self.features[self.on_device(index)]

    def _is_known(self, query: Tensor | None, augment: Augment = "none") -> TypeGuard[Tensor]:
        """Whether nothing enters the backbone, so that its output is the prompt-free feature."""
        return not self.method.touches(self.backbone.depth) and query is not None and augment == "none"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.labels.device.type, torch.bfloat16, enabled=self.autocast)

    def _through_backbone(
        self, p: Stacked, entering: Tensor, first_block: int, query: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """The tokens that a head may read [K, B, ...], and the taps [K, B, D]; `entering` [K, B, ...] as from `_entering`."""
        k, b = entering.shape[:2]
        entering = self._changed_pixels(p, entering)
        with self._autocast():
            if self.method.backbone_weights is None:
                out, tapped = self._shared_pass(p, _begun(entering, first_block), query, k, b)
            else:
                out, tapped = self._pass_per_client(p, entering, query)
        return self._per_client(out, tapped, k, b)

    def _per_client(
        self, out: dict[str, Tensor], tapped: dict[int, Tensor], k: int, b: int
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """What a pass returns, in the precision of the images, and with the axes of clients and samples [K, B, ...]."""
        read = {name: value.to(self.images.dtype).view(k, b, *value.shape[1:]) for name, value in out.items()}
        return read, {layer: value.to(self.images.dtype).view(k, b, -1) for layer, value in tapped.items()}

    def _finished(
        self, p: Stacked, read: dict[str, Tensor], taps: dict[int, Tensor], query: Tensor | None, add_prior: bool
    ) -> Pass:
        """The pass with the logits of the tokens `read` [K, B, ...]."""
        k, b = read["cls"].shape[:2]
        out = dict(read)  # `extra_loss` adds entries
        if self.text is not None:
            out["image"] = self.text.image(read["cls"])
            out |= {f"{view}.image": self.text.image(read[f"{view}.cls"]) for view in self.views_read}
            if "patches" in out:
                out["patches"] = self.text.image(out["patches"])
        logits = self.each(self.method.logits, (p, out), (self.dims(p), 0))
        _expect(self.method.logits, logits, (k, b, None), "[B, C]")
        if add_prior:
            logits = logits + log_prior(p["prior"])[:, None]
        return Pass(logits, out, taps, query)

    def _entering(
        self, index: Tensor, augment: Augment, flip: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor, int]:
        """The input of the backbone [K, B, ...] and the block that it enters: pixels, or cached tokens of a later block."""
        flat = index.flatten()
        if self.cached_tokens is not None and augment == "none":
            entering, block = self.cached_tokens(flat), self.cached_tokens.layer
        else:
            draws = (None if flip is None else flip.flatten(), None if shift is None else shift.flatten(0, 1))
            entering, block = self.images.batch(flat, augment, *draws), 0
        return entering.view(*index.shape, *entering.shape[1:]), block

    def _changed_pixels(self, p: Stacked, images: Tensor) -> Tensor:
        """The images [K, B, 3, S, S] as the method's `pixels` changes them."""
        hook = self.method.pixels
        if hook is None:
            return images
        changed = self.each(hook, (p, images), (self.dims(p), 0))
        return _expect(hook, changed, tuple(images.shape), "[B, 3, S, S]")

    def _shared_pass(
        self, p: Stacked, images: Tensor | PartialPass, query: Tensor | None, k: int, b: int
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """One pass of the frozen backbone for all clients; `images` [K*B, ...], or what is computed of the pass."""
        return self.backbone(  # type: ignore[no-any-return]
            images,
            self.layers,
            self._prompts_at(p, query, k, b),
            self.taps,
            slots_read=self.method.reads_slots,
            run=self.compiled,
            prefixes_at=self._prefixes_at(p, k, b),
            patches_read=self.method.reads_patches,
        )

    def _pass_per_client(
        self, p: Stacked, pixels: Tensor, query: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """A pass of the backbone for each client, with the client's own backbone weights."""
        dims, hook, parts = self.dims(p), self.method.backbone_weights, []
        for k, images in enumerate(pixels):
            client = slice(k, k + 1)
            values = pick(p, dims, k)
            with self._without_autocast():
                tensors = call_hook(hook, lambda values=values: hook(values, self.frozen))  # type: ignore[misc]
            for name, value in tensors.items():
                if name not in self.frozen or value.shape != self.frozen[name].shape:
                    expected = list(self.frozen[name].shape) if name in self.frozen else "no such tensor"
                    raise HookError(f"{describe(hook)}: {name!r} of shape {list(value.shape)}, expected {expected}")
            row = {name: value if dims[name] is None else value[client] for name, value in p.items()}
            prompts_at = self._prompts_at(row, None if query is None else query[client], 1, len(images))
            inputs = (images, self.layers, prompts_at, self.taps, self.method.reads_slots)
            more = {
                "prefixes_at": self._prefixes_at(row, 1, len(images)),
                "patches_read": self.method.reads_patches,
            }
            parts.append(functional_call(self.backbone, tensors, inputs, more))
        read, tapped = ({name: torch.cat([part[i][name] for part in parts]) for name in parts[0][i]} for i in (0, 1))
        return read, tapped

    def _prompts_at(self, p: Stacked, query: Tensor | None, k: int, b: int) -> PromptsAt:
        """The `prompts_at` of a backbone pass on `b` samples of each of `k` clients; `query` [K, B, D]."""
        dims, hook = self.dims(p), self.method.prompts

        def prompts_at(layer: int, cls: Tensor) -> dict[str, Tensor]:
            slots = self.each(
                hook,
                (p, cls.to(self.images.dtype).view(k, b, -1), query),
                (dims, 0, None if query is None else 0),
                call=lambda p_, cls_, query_: hook(layer, p_, cls_, query_),
            )
            for name, value in slots.items():
                if name in RESERVED:
                    raise HookError(
                        f"{describe(hook)}: {name!r} cannot name a slot; `out` holds something else under it"
                    )
                _expect(hook, value, (k, b, None, self.backbone.width), "[B, P, D]", f", slot {name!r}")
            return {name: value.flatten(0, 1).to(cls.dtype) for name, value in slots.items()}

        return prompts_at

    def _prefixes_at(self, p: Stacked, k: int, b: int) -> PrefixesAt | None:
        """The `prefixes_at` of a backbone pass on `b` samples of each of `k` clients; None without the hook."""
        dims, hook, width = self.dims(p), self.method.prefixes, self.backbone.width
        if hook is None:
            return None

        def prefixes_at(layer: int, tokens: Tensor) -> dict[str, Tensor]:
            stacked = tokens.to(self.images.dtype).view(k, b, *tokens.shape[1:])
            made = self.each(hook, (p, stacked), (dims, 0), call=lambda p_, tokens_: hook(layer, p_, tokens_))
            for pair, length in PREFIXES.items():
                if len(names := made.keys() & set(pair)) == 1:
                    raise HookError(f"{describe(hook)}: expected both of {', '.join(pair)}; found {names.pop()} alone")
                for name in names:
                    count = made[pair[0]].shape[-2] if length is None else tokens.shape[1]
                    _expect(hook, made[name], (k, b, count, width), f"[B, {length or 'P'}, D]", f", {name!r}")
            if unknown := made.keys() - {name for pair in PREFIXES for name in pair}:
                known = ", ".join(name for pair in PREFIXES for name in pair)
                raise HookError(f"{describe(hook)}: expected values of {known}; found {unknown.pop()!r}")
            return {name: value.flatten(0, 1) for name, value in made.items()}

        return prefixes_at


def _begun(entering: Tensor, block: int) -> Tensor | PartialPass:
    """The input of the backbone: pixels [K, B, 3, S, S], or tokens [K, B, 1+T, D] that enter a later `block`."""
    return PartialPass(block, entering.flatten(0, 1)) if block else entering.flatten(0, 1)


def _expect(hook: Any, value: Any, shape: tuple[int | None, ...], words: str, more: str = "") -> Tensor:
    """`value`, checked to be a tensor [K, ...] of that shape (None: any length). Raises HookError."""
    if not isinstance(value, Tensor):
        raise HookError(f"{describe(hook)}{more}: expected a tensor {words}, found {type(value).__name__}")
    if len(value.shape) != len(shape) or any(s is not None and v != s for v, s in zip(value.shape, shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape[1:])
        raise HookError(
            f"{describe(hook)}{more}: expected {words} = [{wanted}] for one client, found {list(value.shape[1:])}"
        )
    return value
