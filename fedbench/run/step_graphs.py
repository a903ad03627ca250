"""CUDA graphs of local steps: the forward and backward pass of a step is captured once and replayed with new values.

A small ViT needs less time for its kernels than the host needs to start them. A replay starts them all at once. The optimiser's
step stays outside, because its learning rate and counters change. A step is captured when its shapes come for the second time,
so a ragged last batch costs no capture. The passes without a graph are the twin, and what is used if a capture fails.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fedbench.method import HookError
from fedbench.run.client_optimizer import Recipe
from fedbench.run.phase import Phase, Piece
from fedbench.run.stacked import Stacked
from fedbench.run.stacked_model import StackedModel

log = logging.getLogger("fedbench")

Result = TypeVar("Result")


class ChunkTraining(Protocol):
    """The training of a chunk of clients, as in `fedbench.run.local`: its values and sums, and the gradients of a step."""

    trainer: Any
    recipe: Recipe
    values: Stacked
    received: Stacked
    read: Stacked
    sums: Stacked
    loss: Tensor

    def __init__(self, trainer: Any, received: Stacked, read: Stacked, recipe: Recipe) -> None: ...

    def gradients(
        self, phase: Phase, leaves: Stacked, pieces: Sequence[Piece], working: slice, n: Tensor
    ) -> list[Tensor | None]:
        """The gradients of the leaves; adds to ``loss`` and ``sums``."""
        ...


WARM_UP = 2  # steps before a capture, in which libraries allocate what they keep
MOST = 8  # graphs of a run; each keeps its inputs and results, and all share the memory of their passes


def is_capturable(model: StackedModel) -> bool:
    """Whether the passes of a step read nothing from the host, so that they can be replayed."""
    return (
        model.labels.device.type == "cuda"
        and model.mode == "stacked"
        and model.images.resident
        and model.cached_tokens is None
        and model.method.backbone_weights is None
        and model.method.batch_values is None
    )


@dataclass
class StepGraphs:
    """The graphs of a run's local steps. ``error``: why a capture failed; then no further one is tried."""

    error: str | None = None
    replays: int = 0
    _seen: Counter[Hashable] = field(default_factory=Counter)
    _graphs: dict[Hashable, _StepGraph] = field(default_factory=dict)
    _pool: Any = None

    def gradients(
        self, training: ChunkTraining, phase: Phase, pieces: Sequence[Piece], working: slice, n: Tensor
    ) -> list[Tensor | None] | None:
        """What ``training.gradients`` returns and adds up, by a replay; None if this step has no graph."""
        if self.error is not None or not is_capturable(phase.model):
            return None
        key = _key(training, phase, pieces, working)
        self._seen[key] += 1
        if key not in self._graphs:
            if self._seen[key] < 2 or len(self._graphs) >= MOST:
                return None
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._graphs[key] = _StepGraph(training, phase, pieces, working, n, self._pool)
            except (RuntimeError, HookError) as error:
                self.error = " ".join(str(error).split())
                log.warning("CUDA graphs are not used, because a local step cannot be captured: %s", self.error)
                return None
        self.replays += 1
        return self._graphs[key](training, pieces, n)


def _key(training: ChunkTraining, phase: Phase, pieces: Sequence[Piece], working: slice) -> Hashable:
    """Equal for steps whose passes start the same kernels on tensors of the same shapes."""
    trainer = training.trainer
    values = (training.values, training.received, training.read)
    shapes = [(name, value.shape) for group in values for name, value in group.items()]
    batch = [(piece.index.shape, piece.first) for piece in pieces]
    model = phase.model
    return (
        trainer.finetuning, model.method.phase, tuple(phase.names), model.per_client_server, working.stop,
        tuple(shapes), tuple(batch),
    )  # fmt: skip


class _StepGraph:
    """A captured step with tensors of its own, into which each replay copies the step's values."""

    def __init__(
        self, training: ChunkTraining, phase: Phase, pieces: Sequence[Piece], working: slice, n: Tensor, pool: Any
    ) -> None:
        self.working = working
        # A training of the same clients, whose tensors stay where they are.
        self.twin = type(training)(
            training.trainer, _clones(training.received), _clones(training.read), training.recipe
        )
        self.leaves = {name: self.twin.values[name].requires_grad_() for name in phase.names}
        self.pieces = [_clone(piece) for piece in pieces]
        self.n = n.clone()
        self._copy(training, pieces, n)

        def passes() -> list[Tensor | None]:
            for total in (self.twin.loss, *self.twin.sums.values()):
                total.zero_()
            return self.twin.gradients(phase, self.leaves, self.pieces, working, self.n)

        self.graph = torch.cuda.CUDAGraph()
        self.results = captured(self.graph, passes, pool)

    def __call__(self, training: ChunkTraining, pieces: Sequence[Piece], n: Tensor) -> list[Tensor | None]:
        """Replay the step with the values of `training`. The gradients are overwritten by the next replay."""
        self._copy(training, pieces, n)
        self.graph.replay()
        training.loss += self.twin.loss
        for name, value in self.twin.sums.items():
            if name in training.sums:
                training.sums[name] += value
            else:
                training.sums[name] = value.clone()
        return self.results

    @torch.no_grad()
    def _copy(self, training: ChunkTraining, pieces: Sequence[Piece], n: Tensor) -> None:
        """Copy the step's values into the graph's tensors, with one call for each type of number."""
        twin, pairs = self.twin, [(self.n, n)]
        for targets, sources in (
            (twin.values, training.values),
            (twin.received, training.received),
            (twin.read, training.read),
            *((_tensors(a), _tensors(b)) for a, b in zip(self.pieces, pieces, strict=True)),
        ):
            pairs += [(target, sources[name].detach()) for name, target in targets.items()]
        for dtype in dict.fromkeys(target.dtype for target, _ in pairs):
            same = [pair for pair in pairs if pair[0].dtype == dtype]
            torch._foreach_copy_([target for target, _ in same], [source for _, source in same])


def captured(graph: torch.cuda.CUDAGraph, passes: Callable[[], Result], pool: Any) -> Result:
    """Capture the kernels that `passes` starts. Returns its result, whose tensors each replay of the graph writes anew.

    Raises RuntimeError if `passes` waits for the device or reads from the host.
    """
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            passes()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, pool=pool):
        return passes()


def _tensors(piece: Piece) -> Stacked:
    return {"index": piece.index, "weight": piece.weight, "flip": piece.flip, "shift": piece.shift}


def _clone(piece: Piece) -> Piece:
    tensors: dict[str, Any] = {name: value.clone() for name, value in _tensors(piece).items()}
    return replace(piece, **tensors)


def _clones(values: Mapping[str, Tensor]) -> Stacked:
    return {name: value.detach().clone() for name, value in values.items()}
