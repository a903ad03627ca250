"""Local training of K clients in one graph: the gradient of the sum of the clients' losses is each client's own gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedbench.data import Batches
from fedbench.method import Aggregation, ClientUpdates, HookError
from fedbench.method.hooks import describe
from fedbench.method.phases import trained_in
from fedbench.plan.config import LocalConfig
from fedbench.run.client_optimizer import ClientOptimizer, Recipe
from fedbench.run.phase import Phase, Piece
from fedbench.run.stacked import Stacked, per_client, rows
from fedbench.run.stacked_model import Pass, StackedModel
from fedbench.run.step_graphs import StepGraphs
from fedbench.vit.images import sent_to


@dataclass(frozen=True)
class Trainer:
    """Trains stacked clients as `local` says, `chunk` clients at a time. The chunk size changes results by rounding only.

    ``piece``: the most samples of a client in one pass. The gradient of a larger batch is the sum over several pieces.
    """

    model: StackedModel
    aggregation: Aggregation
    local: LocalConfig
    chunk: int
    piece: int = 1 << 30
    finetuning: bool = False  # before evaluation, not in a round
    graphs: StepGraphs | None = None  # CUDA graphs of the steps, if wanted

    @cached_property
    def phases(self) -> list[Phase]:
        """The local phases; none for a method that trains nothing. Raises HookError."""
        method = self.model.method
        named = bool(method.phases) and not (self.finetuning and method.finetune_phases)
        trained = trained_in(method, self.model.spec, self.finetuning)
        return [self._phase(names, i if named else None) for i, names in enumerate(trained)]

    def _phase(self, names: list[str], number: int | None) -> Phase:
        method = self.model.method
        views = {view: replace(self.model, method=method.at(number, view)) for view in method.views}
        return Phase(names, replace(self.model, method=method.at(number)), views)

    def train(self, received: Stacked, read: Stacked, phases: Sequence[Batches], recipe: Recipe) -> ClientUpdates:
        """Train from `received` {name: [K, ...]} with the batches `phases`, one for each local phase.

        `read`: the server's values that clients read (with a row for each client if they have different servers). The rows
        of `received` and of the updates are in the order of ``phases[0].clients``.
        """

        def train_chunk(clients: slice) -> ClientUpdates:
            chunk_phases = [_clients(batches, clients.start, clients.stop) for batches in phases]
            read_here = self.model.read_rows(read, clients)
            return _ChunkTraining(self, rows(received, clients), read_here, recipe.rows(clients)).train(chunk_phases)

        chunks = [slice(i, i + self.chunk) for i in range(0, len(phases[0].clients), self.chunk)]
        return replace(_joined(self.model.thread_map(train_chunk, chunks)), received=received)


class _ChunkTraining:
    """The training of one chunk of clients over all local phases: the clients' values and the sums so far."""

    def __init__(self, trainer: Trainer, received: Stacked, read: Stacked, recipe: Recipe) -> None:
        self.trainer, self.received, self.read, self.recipe = trainer, received, read, recipe
        self.model, self.local, self.aggregation = trainer.model, trainer.local, trainer.aggregation
        self.values = {name: value.clone() for name, value in received.items()}
        self.count = len(next(iter(received.values())))
        self.device = self.model.labels.device
        self.loss = torch.zeros(self.count, device=self.device, dtype=torch.float64)  # summed over samples
        self.samples, self.steps = torch.zeros_like(self.loss), torch.zeros_like(self.loss)
        self.sums: Stacked = {}
        self.fixed_text: Stacked = {}  # text features of contexts that the present phase does not change
        aggregated = [name for name, param in self.model.spec.items() if param.aggregated]
        wanted = aggregated if self.aggregation.wants_gradient else []
        self.gradient = {
            name: torch.zeros_like(self.values[name]) for name in wanted
        }  # summed over steps of all phases
        self.gradient_steps = {name: torch.zeros_like(self.steps) for name in wanted}

    def train(self, phases: Sequence[Batches]) -> ClientUpdates:
        """Train all phases in turn."""
        for phase, batches in zip(self.trainer.phases, phases, strict=True):
            self._phase(phase, batches)
        self._uploaded()
        epochs = sent_to(self.device, np.sum([batches.epochs for batches in phases], axis=0))  # [K] over all phases
        return ClientUpdates(
            clients=sent_to(self.device, np.array(phases[0].clients)),
            received=self.received,
            updated={name: value.detach() for name, value in self.values.items()},
            sums=self.sums,
            num_samples=self.samples / epochs,
            steps=self.steps,
            loss=self.loss / self.samples.clamp(min=1),
            lr=self.recipe.lr,
            gradient={n: g / per_client(self.gradient_steps[n], g).to(g) for n, g in self.gradient.items()},
        )

    @torch.no_grad()
    def _uploaded(self) -> None:
        """Replace values by those that the method's `upload` makes. Raises HookError for another name or shape."""
        model, hook = self.model, self.model.method.upload
        if hook is None or self.trainer.finetuning:
            return
        shared = {name: value for name, value in self.received.items() if model.spec[name].home == "shared"}
        p = self.values | self.read
        for name, value in model.each(hook, (p, shared), (model.dims(p), 0)).items():
            if name not in self.values or value.shape != self.values[name].shape:
                expected = list(self.values[name].shape[1:]) if name in self.values else "no value of a client"
                raise HookError(f"{describe(hook)}: {name!r} of shape {list(value.shape[1:])}, expected {expected}")
            self.values[name] = value

    def _phase(self, phase: Phase, batches: Batches) -> None:
        leaves = {name: self.values[name].requires_grad_() for name in phase.names}
        self.fixed_text = self._fixed_text(phase.model)
        optimizer = ClientOptimizer(leaves, self.model.spec, self.local, self.recipe)
        index = self.model.sample_index(batches.index)
        weight, flip, shift = (sent_to(self.device, array) for array in (batches.weight, batches.flip, batches.shift))
        weight = weight.to(self.model.images.dtype)
        used = (batches.weight > 0).sum(2).max(1)  # [S] columns that are not padding for every client
        per_epoch = (batches.weight > 0).any(2).sum(0) // batches.epochs  # [K] steps
        for step, active in enumerate(batches.active):
            working = slice(0, active)  # the clients that still have batches
            pieces = []
            size = int(used[step]) if phase.model.method.reads_batch else self.trainer.piece
            for start in range(0, int(used[step]), size):
                at = (step, working, slice(start, min(start + size, int(used[step]))))
                pieces.append(Piece(index[at], weight[at], flip[at], shift[at], first=start == 0))
            n = weight[step, working].sum(1)
            graphs, gradients = self.trainer.graphs, None
            if graphs is not None:
                gradients = graphs.gradients(self, phase, pieces, working, n)
            if gradients is None:
                epoch = (step // per_epoch[working]) if phase.model.method.batch_values is not None else None
                gradients = self.gradients(phase, leaves, pieces, working, n, epoch)
            if step == 0:
                _check_all_trained(phase, gradients)
            optimizer.clip(gradients)
            self._add_gradient(leaves, gradients, working)
            optimizer.step(gradients, active, self._steer(phase))
            self.samples[working] += n
            self.steps[working] += 1
        for name in phase.names:
            self.values[name] = leaves[name].detach().requires_grad_(False)

    def _fixed_text(self, model: StackedModel) -> Stacked:
        """The text features of contexts that do not change in a phase, {"text.<slot>": [K, C, E]}."""
        if model.method.contexts is None or model.method.batch_values is not None:
            return {}
        known = model.with_text(self.values | self.read, fixed=True)
        return {name: value for name, value in known.items() if name.startswith("text.")}

    def gradients(
        self,
        phase: Phase,
        leaves: Stacked,
        pieces: Sequence[Piece],
        working: slice,
        n: Tensor,
        epoch: NDArray[np.int64] | None = None,
    ) -> list[Tensor | None]:
        """The gradient with respect to each leaf of the sum over clients of each client's mean loss over `n` [K] samples."""
        whole = working.stop == self.count
        live = {name: value if whole else value[working] for name, value in self.values.items()}
        live |= self.model.read_rows(self.read, working)
        received = rows(self.received, working)
        if epoch is not None:
            live |= self._batch_values(phase.model, live, pieces, epoch)
        text, live = _text_leaves(phase.model.with_text(live | rows(self.fixed_text, working)))
        total: list[Tensor | None] = [None] * (len(leaves) + len(text))
        for piece in pieces:
            losses = self._loss(phase, live, received, piece, n)
            inputs = [*leaves.values(), *(live[name] for name in text)]
            total = _sums(total, torch.autograd.grad(losses.sum(), inputs, allow_unused=True))
            self.loss[working] += losses.detach() * n
        return _sums(total[: len(leaves)], _through_text(leaves, text, total[len(leaves) :]))

    @torch.no_grad()
    def _batch_values(
        self, model: StackedModel, live: Stacked, pieces: Sequence[Piece], epoch: NDArray[np.int64]
    ) -> Stacked:
        """What the method makes of the whole batch, {name: [K, ...]}. Raises HookError for a name of params()."""
        hook = model.method.batch_values
        index, weight = (torch.cat([getattr(piece, name) for piece in pieces], 1) for name in ("index", "weight"))
        query = None if model.features is None else model.features[model.on_device(index)]
        args = (live, query, weight, sent_to(self.device, epoch))
        made: Stacked = model.each(hook, args, (model.dims(live), None if query is None else 0, 0, 0))
        if taken := sorted(made.keys() & model.spec.keys()):
            raise HookError(f"{describe(hook)}: {taken[0]!r} is one of params(); give the value another name")
        return made

    def _loss(self, phase: Phase, live: Stacked, received: Stacked, piece: Piece, n: Tensor) -> Tensor:
        """The piece's part of each client's mean loss [K] over `n` [K] samples. Also adds up the sums of `observe`."""
        model, method = phase.model, phase.model.method
        result = self._forward(model, live, piece, add_prior=method.adds_prior_in_training)
        y = model.labels[model.on_device(piece.index)]
        losses = cross_entropy(result.logits, y, self.local.label_smoothing)
        loss = masked_sum(losses, piece.weight) / n
        if method.extra_loss is not None:
            loss = loss + self._method_loss(phase, live, received, result, y, piece, n)
        if self.aggregation.extra_loss is not None and piece.first and not self.trainer.finetuning:
            shared = {name: received[name] for name, param in model.spec.items() if param.aggregated}
            if shared:  # otherwise the aggregation's loss has nothing to act on
                loss = loss + model.each(self.aggregation.extra_loss, (live, shared), (model.dims(live), 0))
        if method.observe is not None and not self.trainer.finetuning:
            self._observe(model, live, result, losses, y, piece.weight)
        return loss

    def _forward(self, model: StackedModel, live: Stacked, piece: Piece, add_prior: bool) -> Pass:
        return model.forward(live, piece.index, add_prior, self.local.augment, piece.flip, piece.shift)

    def _method_loss(
        self, phase: Phase, live: Stacked, received: Stacked, result: Pass, y: Tensor, piece: Piece, n: Tensor
    ) -> Tensor:
        """The method's extra loss for each client [K], added to its mean loss."""
        model, hook = phase.model, phase.model.method.extra_loss
        shared = {name: value for name, value in received.items() if model.spec[name].home == "shared"}
        for name, view in phase.views.items():
            if f"{name}.cls" in result.out:  # the main pass has made it
                continue
            result.out[f"{name}.cls"] = self._forward(view, live, piece, add_prior=False).out["cls"]
        query_dim = None if result.query is None else 0
        out = result.out | {"logits": result.logits, "y": y}
        if model.method.reads_batch:
            out["weight"] = piece.weight
        extra: Tensor = model.each(hook, (live, shared, out, result.query), (model.dims(live), 0, 0, query_dim))
        if extra.shape == piece.weight.shape:
            return masked_sum(extra, piece.weight) / n
        if extra.shape == n.shape:
            return extra * piece.first
        raise HookError(
            f"{describe(hook)}: expected a scalar or [B] = [{piece.weight.shape[1]}] for one client, found "
            f"{list(extra.shape[1:])}"
        )

    @torch.no_grad()
    def _observe(
        self, model: StackedModel, live: Stacked, result: Pass, losses: Tensor, y: Tensor, weight: Tensor
    ) -> None:
        taps = {**result.taps, **result.out, "logits": result.logits, "loss": losses}
        args = (live, taps, result.query, y, weight)
        query_dim = None if result.query is None else 0
        for name, value in model.each(model.method.observe, args, (model.dims(live), 0, query_dim, 0, 0)).items():
            self.sums.setdefault(name, value.new_zeros(self.count, *value.shape[1:]))[: len(value)] += value

    def _add_gradient(self, leaves: Stacked, gradients: Sequence[Tensor | None], working: slice) -> None:
        """Add up the gradients, if the aggregation wants them."""
        for name, gradient in zip(leaves, gradients, strict=True):
            if name in self.gradient and gradient is not None:
                self.gradient[name] += gradient  # zero for clients that have no batch left
                self.gradient_steps[name][working] += 1

    def _steer(self, phase: Phase) -> Callable[[Stacked, Stacked], Stacked] | None:
        """The method's change to an optimiser step, if it has one."""
        model, hook = phase.model, phase.model.method.steer
        if hook is None:
            return None

        def steer(before: Stacked, step: Stacked) -> Stacked:
            p = before | self.read
            changed: Stacked = model.each(hook, (p, step), (model.dims(p), 0))
            return changed

        return steer


def _text_leaves(live: Stacked) -> tuple[Stacked, Stacked]:
    """The text features that need a gradient, and `live` with leaves in their place.

    A step thus runs the text tower once, forwards and backwards, however many pieces its batch has.
    """
    text = {name: value for name, value in live.items() if name.startswith("text.") and not value.is_leaf}
    return text, live | {name: value.detach().requires_grad_() for name, value in text.items()}


def _through_text(leaves: Stacked, text: Stacked, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The gradients of the leaves by way of the text features, whose own `gradients` are known."""
    known = [
        (value, gradient) for value, gradient in zip(text.values(), gradients, strict=True) if gradient is not None
    ]
    if not known:
        return [None] * len(leaves)
    outputs, backward = zip(*known, strict=True)
    return torch.autograd.grad(outputs, list(leaves.values()), backward, allow_unused=True)


def _sums(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]


def _check_all_trained(phase: Phase, gradients: Sequence[Tensor | None]) -> None:
    """Raise HookError if the loss does not depend on a value that the phase trains."""
    for name, gradient in zip(phase.names, gradients, strict=True):
        if gradient is None:
            method = phase.model.method
            raise HookError(
                f"{describe(method.params)} declares {name!r} as trained"
                + ("" if method.phase is None else f" and phase {method.phase} trains it")
                + ", but the loss does not depend on it: no hook uses it"
            )


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """Cross entropy [K, B] of the class scores [K, B, C] with the labels [K, B], smoothed as in `torch.nn`."""
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=label_smoothing)
    return losses.view_as(y)


def masked_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum over samples [K, B] -> [K], without padding (weight 0)."""
    return (values * weight).sum(1)


def _joined(parts: Sequence[ClientUpdates]) -> ClientUpdates:
    """The updates of several chunks of clients, concatenated."""

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        return {key: torch.cat([value[key] for value in values]) for key in values[0]}

    names = ("clients", "updated", "sums", "num_samples", "steps", "loss", "gradient")
    return replace(parts[0], **{name: joined(name) for name in names})


def _clients(batches: Batches, start: int, stop: int) -> Batches:
    """The clients `start` to `stop` of a cohort's batches, without steps in which none of them trains."""
    active = tuple(min(max(a - start, 0), stop - start) for a in batches.active)
    steps, clients = sum(1 for a in active if a), slice(start, stop)
    return replace(
        batches,
        clients=batches.clients[clients],
        index=batches.index[:steps, clients],
        weight=batches.weight[:steps, clients],
        flip=batches.flip[:steps, clients],
        shift=batches.shift[:steps, clients],
        active=active[:steps],
        epochs=batches.epochs[clients],
    )


def without_training(clients: Tensor, received: Stacked, samples: Sequence[int], lr: float) -> ClientUpdates:
    """The updates of clients that train nothing, for a method whose server learns from statistics alone."""
    n = sent_to(clients.device, np.array(samples, dtype=np.float64))
    return ClientUpdates(
        clients=clients,
        received=received,
        updated={},
        sums={},
        num_samples=n,
        steps=torch.zeros_like(n),
        loss=torch.full_like(n, torch.nan),
        lr=lr,
    )
