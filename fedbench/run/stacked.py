"""Arithmetic on stacked clients, ``{name: [K, ...]}``: tensors whose first axis goes over K clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from fedbench.method import HookError
from fedbench.method.hooks import describe

Stacked = dict[str, Tensor]
ClientMode = Literal["stacked", "loop"]


def each_client(fn: Callable[..., Any], args: Sequence[Any], dims: Sequence[Any], mode: ClientMode = "stacked") -> Any:
    """Call `fn`, written for one client, for every client and stack the results.

    `dims` gives the client axis of each argument: ``0`` (every tensor in it has one), ``None`` (shared by all clients), or
    for a dict argument a dict of the same keys. ``"stacked"`` maps with `torch.func.vmap`. ``"loop"`` calls `fn` client by
    client, which is slow and serves as a reference.
    """
    if mode == "stacked":
        return vmap(fn, in_dims=tuple(dims))(*args)
    count = next(len(leaf) for leaf, dim in _leaves(args, dims) if dim == 0)
    results = [fn(*(pick(arg, dim, k) for arg, dim in zip(args, dims, strict=True))) for k in range(count)]
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def call_hook(hook: Any, call: Callable[[], Any]) -> Any:
    """The result of ``call()``. An exception of a plug-in becomes a HookError that names `hook`."""
    try:
        return call()
    except (torch.OutOfMemoryError, HookError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise HookError(f"{describe(hook, error)}: {type(error).__name__}: {error}") from error


def _leaves(args: Sequence[Any], dims: Sequence[Any]) -> list[tuple[Tensor, int | None]]:
    leaves: list[tuple[Tensor, int | None]] = []
    for arg, dim in zip(args, dims, strict=True):
        if isinstance(dim, dict):
            leaves += _leaves([arg[name] for name in dim], list(dim.values()))
        else:
            leaves += [(leaf, dim) for leaf in pytree.tree_leaves(arg)]
    return leaves


def pick(arg: Any, dim: Any, k: int) -> Any:
    """Client `k`'s part of an argument whose client axes are `dim`."""
    if isinstance(dim, dict):
        return {name: pick(value, dim[name], k) for name, value in arg.items()}
    return arg if dim is None else pytree.tree_map(lambda leaf: leaf[k], arg)


def rows(values: Mapping[str, Tensor], index: Tensor | slice) -> Stacked:
    """The rows `index` of every tensor."""
    return {name: value[index] for name, value in values.items()}


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Mean over the client axis of `value` [K, ...] with weights proportional to `weight` [K]: FedAvg's aggregation."""
    mean: Tensor = torch.tensordot((weight / weight.sum()).to(value), value, dims=1)
    return mean


def per_client(value: Tensor, like: Tensor) -> Tensor:
    """`value` [K] with trailing singleton axes, to broadcast against `like` [K, ...]."""
    return value.view(-1, *[1] * (like.dim() - 1))
