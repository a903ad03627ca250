"""Which blocks of the backbone compute the same for clients that differ in some values only, such as their class prior."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedbench.method import Method, Param
from fedbench.vit.backbone import Backbone


class WatchedValues(dict[str, Tensor]):
    """Values for a hook. ``was_read``: whether the hook has read one of the values `watched`, or all values at once."""

    def __init__(self, values: Mapping[str, Tensor], watched: Collection[str]) -> None:
        super().__init__(values)
        self.watched, self.was_read = watched, False

    def _all(self) -> dict[str, Tensor]:
        self.was_read = self.was_read or any(name in self for name in self.watched)
        return dict(super().items())

    def __getitem__(self, name: str) -> Tensor:
        """The value `name`."""
        self.was_read = self.was_read or name in self.watched
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value `name`, or `default`."""
        self.was_read = self.was_read or name in self.watched
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove and return the value `name`."""
        self.was_read = self.was_read or name in self.watched
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        """Copying and unpacking iterate, so they count as reading every value."""
        return iter(self._all())

    def keys(self) -> Any:
        """All names."""
        return self._all().keys()

    def values(self) -> Any:
        """All values."""
        return self._all().values()

    def items(self) -> Any:
        """All names and values."""
        return self._all().items()

    def copy(self) -> dict[str, Tensor]:
        """A plain copy."""
        return self._all()

    def __or__(self, other: Any) -> Any:
        """A plain copy with the values of `other`."""
        return self._all() | other

    def __ror__(self, other: Any) -> Any:
        """A plain copy of `other` with these values."""
        return other | self._all()


def shared_blocks(method: Method, spec: Mapping[str, Param], vit: Backbone, different: Collection[str]) -> int:
    """How many of the first blocks compute the same for clients that differ only in the values `different`.

    The depth if no hook before `logits` reads one of them. The hooks are called with one sample on the meta device, where
    tensors have shapes but no values, so nothing but the names that they read can decide.
    """
    p = WatchedValues({name: param.init.detach().to("meta") for name, param in spec.items()}, different)
    zero = torch.zeros(1, vit.width, device="meta")
    query = zero if method.uses_query else None
    if method.pixels is not None:
        method.pixels(p, torch.zeros(1, 3, vit.image_size, vit.image_size, device="meta"))
    if method.backbone_weights is not None:
        method.backbone_weights(p, {name: value.to("meta") for name, value in vit.named_parameters()})
    if p.was_read:
        return 0
    for layer in sorted(method.layers(vit.depth)):
        method.prompts(layer, p, zero, query)
        if method.prefixes is not None:
            method.prefixes(layer, p, zero[:, None])
        if p.was_read:  # the pass of one client with its own weights is not divided
            return 0 if method.backbone_weights is not None else layer
    return vit.depth
