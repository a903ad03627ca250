"""Local training of K clients in one graph: each gets its own exact gradient from the sum of the clients' own losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.cohort import Cohort
from fedbench.config import Local
from fedbench.data import Batches
from fedbench.method import Aggregation, Report
from fedbench.stacked import Stacked, per_client, rows


@dataclass(frozen=True)
class Trainer:
    """Trains stacked clients by the recipe `local`, `chunk` clients at a time (which changes no numbers but rounding).

    `piece` bounds the samples of a client in one pass."""

    cohort: Cohort
    aggregation: Aggregation
    local: Local
    chunk: int
    piece: int = 1 << 30  # samples of a client in one pass: a larger batch is summed up from several

    def phases(self) -> list[list[str]]:
        """Names that are trained in each local phase; no phase at all for a method without training."""
        spec, parts = self.cohort.spec, self.cohort.method.phases
        trained = [name for name, param in spec.items() if param.trains]
        if parts is None:
            return [trained] if trained else []
        return [[n for n in trained if any(n == part or n.startswith(part + ".") for part in phase)] for phase in parts]

    def train(self, sent: Stacked, read: Mapping[str, Tensor], phases: list[Batches], lr: float) -> Report:
        """Train from `sent` {name: [K, ...]}; `read` are the server's values that clients see; `phases` one a local phase.

        The rows of `sent` stand in the order of ``phases[0].clients``, as do those of the report.
        """
        count = len(phases[0].clients)
        parts = [
            self._chunk(
                rows(sent, slice(i, i + self.chunk)), read, [_clients(b, i, i + self.chunk) for b in phases], lr
            )
            for i in range(0, count, self.chunk)
        ]
        return Report(
            clients=torch.cat([part.clients for part in parts]),
            sent=sent,
            got={name: torch.cat([part.got[name] for part in parts]) for name in parts[0].got},
            seen={name: torch.cat([part.seen[name] for part in parts]) for name in parts[0].seen},
            weight=torch.cat([part.weight for part in parts]),
            steps=torch.cat([part.steps for part in parts]),
            loss=torch.cat([part.loss for part in parts]),
            lr=lr,
        )

    def _chunk(self, sent: Stacked, read: Mapping[str, Tensor], phases: list[Batches], lr: float) -> Report:
        values = {name: value.clone() for name, value in sent.items()}
        count = len(phases[0].clients)
        device = self.cohort.labels.device
        total = torch.zeros(count, device=device, dtype=torch.float64)
        samples, steps = torch.zeros_like(total), torch.zeros_like(total)
        seen: Stacked = {}
        for names, batches in zip(self.phases(), phases, strict=True):
            leaves = {name: values[name].requires_grad_() for name in names}
            optimizer = self._optimizer(leaves, lr)
            index, weight, flip, shift = (
                torch.from_numpy(x).to(device) for x in (batches.index, batches.weight, batches.flip, batches.shift)
            )
            weight = weight.to(self.cohort.images.dtype)
            filled = (
                (batches.weight > 0).sum(2).max(1)
            )  # [S] columns in use: what is padding for everyone is not computed
            for step, active in enumerate(batches.active):
                now = slice(0, active)  # the clients still at work; the others' data have ended
                live = {name: value if active == count else value[now] for name, value in values.items()} | dict(read)
                n = weight[step, now].sum(1)
                gradients: list[Tensor | None] = [None] * len(leaves)
                for start in range(0, int(filled[step]), self.piece):
                    at = (step, now, slice(start, min(start + self.piece, int(filled[step]))))
                    draws = (index[at], weight[at], flip[at], shift[at])
                    losses, sums = self._loss(live, rows(sent, now), draws, n, first=start == 0)
                    for name, value in sums.items():
                        seen.setdefault(name, value.new_zeros(count, *value.shape[1:]))[now] += value
                    new = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
                    gradients = [
                        b if a is None else a if b is None else a + b for a, b in zip(gradients, new, strict=True)
                    ]
                    total[now] += losses.detach() * n
                self._step(leaves, gradients, optimizer, active)
                samples[now] += n
                steps[now] += 1
            for name in names:
                values[name] = leaves[name].detach().requires_grad_(False)
        got = {name: value.detach() for name, value in values.items()}
        own = torch.from_numpy(np.array(phases[0].clients)).to(device)
        epochs = max(1, self.local.epochs * len(phases))
        return Report(own, sent, got, seen, samples / epochs, steps, total / samples.clamp(min=1), lr)

    def _loss(
        self, live: Stacked, sent: Stacked, draws: tuple[Tensor, ...], n: Tensor, first: bool
    ) -> tuple[Tensor, Stacked]:
        """The part of each client's mean loss [K] over its batch of `n` [K] samples that the samples of `draws` make, and
        what `observe` sums over them. Terms about parameters alone belong to the `first` part."""
        cohort, method = self.cohort, self.cohort.method
        index, weight, flip, shift = draws
        prior = method.logit_prior in ("train", "both")
        result = cohort.forward(live, index, prior, self.local.augment, flip, shift)
        y = cohort.labels[index]
        losses = F.cross_entropy(result.logits.flatten(0, 1), y.flatten(), reduction="none").view_as(weight)
        loss = masked_sum(losses, weight) / n
        dims = cohort.dims(live)
        shared = {name: value for name, value in sent.items() if cohort.spec[name].home == "shared"}
        query_dim = None if result.query is None else 0
        if method.extra_loss is not None:
            args = (live, shared, result.out, result.query)
            extra = cohort.each(method.extra_loss, args, (dims, 0, 0, query_dim))
            loss = loss + (masked_sum(extra, weight) / n if extra.dim() == 2 else extra * first)
        if self.aggregation.extra_loss is not None and first:
            loss = loss + cohort.each(self.aggregation.extra_loss, (live, shared), (dims, 0))
        if method.observe is None:
            return loss, {}
        with torch.no_grad():
            seen = (live, result.taps, result.query, y, weight)
            return loss, cohort.each(method.observe, seen, (dims, 0, query_dim, 0, 0))

    def _optimizer(self, leaves: Stacked, lr: float) -> torch.optim.Optimizer:
        """torch's own optimiser: it is element-wise, so on stacked tensors it is one optimiser a client."""
        local, spec = self.local, self.cohort.spec
        groups = [{"params": [leaf], "lr": lr * spec[name].lr_scale} for name, leaf in leaves.items()]
        if local.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay)
        kind = torch.optim.Adam if local.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=lr, weight_decay=local.weight_decay)

    def _step(
        self, leaves: Stacked, gradients: Sequence[Tensor | None], optimizer: torch.optim.Optimizer, active: int
    ) -> None:
        """One optimiser step of the first `active` clients; the others stand still (weight decay and momentum too)."""
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        if self.local.clip is not None:
            clip(gradients, self.local.clip)
        resting = {name: leaf.detach()[active:].clone() for name, leaf in leaves.items()}
        optimizer.step()
        with torch.no_grad():
            for name, value in resting.items():
                if len(value):
                    leaves[name][active:] = value


def masked_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum over samples [K, B] -> [K], of which padding (weight 0) is no part."""
    return (values * weight).sum(1)


def clip(gradients: Sequence[Tensor | None], largest: float) -> None:
    """Scale each client's gradient, over all its tensors [K, ...], to a norm of at most `largest`, in place."""
    present = [gradient for gradient in gradients if gradient is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in present]).sum(0)
    factor = (largest / squares.sqrt().clamp(min=1e-12)).clamp(max=1)
    for gradient in present:
        gradient.mul_(per_client(factor, gradient))


def _clients(batches: Batches, start: int, stop: int) -> Batches:
    """The clients `start` to `stop` of a cohort's batches, without the steps that only others take."""
    active = tuple(min(max(a - start, 0), stop - start) for a in batches.active)
    steps, mine = sum(1 for a in active if a), slice(start, stop)
    return replace(
        batches,
        clients=batches.clients[mine],
        index=batches.index[:steps, mine],
        weight=batches.weight[:steps, mine],
        flip=batches.flip[:steps, mine],
        shift=batches.shift[:steps, mine],
        active=active[:steps],
    )


def idle(clients: Tensor, sent: Stacked, samples: list[int], lr: float) -> Report:
    """The report of clients that train nothing: a method without training, whose server learns from statistics alone."""
    weight = torch.tensor(samples, dtype=torch.float64, device=clients.device)
    return Report(clients, sent, {}, {}, weight, torch.zeros_like(weight), torch.full_like(weight, torch.nan), lr)
