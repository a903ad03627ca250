"""CUDA graphs on the pretended GPU: a capture records every operator with its tensors, and a replay runs them again.

A replay calls the recorded operators in order on the recorded tensors and writes their results where the capture wrote them.
So, as on a GPU, it reads new values only from tensors that were copied into, and numbers of the host keep their captured
value. A capture fails where the host waits for the GPU or copies from its memory.

What this does not prove: that every kernel and library call allows a capture, what memory a graph takes, how streams order
work, and how fast a replay is.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from pretended_gpu import PretendedGPU, is_real
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

VIEW, IN_PLACE, NEW = "view", "in place", "new"


def kind(func: Any) -> str:
    """Whether an operator's first result is a view, is written in place, or is new."""
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    if alias is None:
        return NEW if func._schema.returns else IN_PLACE  # such as the _foreach operators in place
    return IN_PLACE if alias.is_write else VIEW


class Graph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`, and records as a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.record: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if kind(func) != VIEW:
            self.record.append((func, args, kwargs or {}, out))
        return out


@contextmanager
def pretended_graphs(gpu: PretendedGPU) -> Any:
    """Inside, `torch.cuda` has graphs. A replay counts as one kernel."""

    @contextmanager
    def capture(graph: Graph, pool: Any = None) -> Any:
        waits = len(gpu.waits)
        with graph:
            yield
        if len(gpu.waits) > waits:
            raise RuntimeError(f"operation not permitted when stream is capturing: {gpu.waits[waits]}")

    def replay(graph: Graph) -> None:
        gpu.kernels["graph"] += 1
        with gpu.quiet(), torch.no_grad():
            for func, args, kwargs, out in graph.record:
                result = func(*args, **kwargs)
                if kind(func) == NEW:
                    for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(result), strict=True):
                        if is_real(old) and old.numel():
                            old.copy_(new)

    stream = mock.Mock()
    with ExitStack() as stack:
        for name, new in {
            "CUDAGraph": Graph,
            "graph": capture,
            "graph_pool_handle": lambda: (0, 1),
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda _: nullcontext(),
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, new))
        stack.enter_context(mock.patch.object(Graph, "replay", replay, create=True))
        yield
