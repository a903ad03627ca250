"""Local training of K clients in one graph: each gets its own exact gradient from the sum of the clients' own losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.run.stacked_model import Cohort
from fedbench.plan.config import Local
from fedbench.data import Batches
from fedbench.method import Aggregation, HookError, Report, told, trained_in
from fedbench.run.stacked import Stacked, per_client, rows


@dataclass(frozen=True)
class Phase:
    """A local phase: the names that it trains, and the method as it is in it and in its further passes."""

    names: list[str]
    cohort: Cohort
    views: dict[str, Cohort]


@dataclass(frozen=True)
class Rates:
    """What each row has of its own where rows of several recipes are trained together."""

    lr: Tensor  # [K], as a share of the largest
    clip: Tensor  # [K], infinite where gradients are left as they are

    def of(self, clients: slice) -> Rates:
        """Those of some rows."""
        return Rates(self.lr[clients], self.clip[clients])


@dataclass(frozen=True)
class Trainer:
    """Trains stacked clients by the recipe `local`, `chunk` clients at a time (which changes no numbers but rounding).

    `piece` bounds the samples of a client in one pass."""

    cohort: Cohort
    aggregation: Aggregation
    local: Local
    chunk: int
    piece: int = 1 << 30  # samples of a client in one pass: a larger batch is summed up from several
    finetuning: bool = False  # before evaluation, not in a round

    @cached_property
    def phases(self) -> list[Phase]:
        """The local phases; none at all for a method without training. Raises HookError."""
        method = self.cohort.method
        named = bool(method.phases) and not (self.finetuning and method.finetune_phases)
        found = trained_in(method, self.cohort.spec, self.finetuning)
        return [self._phase(names, i if named else None) for i, names in enumerate(found)]

    def _phase(self, names: list[str], number: int | None) -> Phase:
        method = self.cohort.method
        views = {v: replace(self.cohort, method=method.at(number, v)) for v in method.views}
        return Phase(names, replace(self.cohort, method=method.at(number)), views)

    def train(
        self, sent: Stacked, read: Stacked, phases: Sequence[Batches], lr: float, rates: Rates | None = None
    ) -> Report:
        """Train from `sent` {name: [K, ...]}; `read` are the server's values that clients see, with a row for each client
        where they are of several servers; `phases` one a local phase; `lr` the largest, where `rates` differ.

        The rows of `sent` stand in the order of ``phases[0].clients``, as do those of the report.
        """
        chunks = [slice(i, i + self.chunk) for i in range(0, len(phases[0].clients), self.chunk)]

        def one(chunk: slice) -> Report:
            mine = [_clients(b, chunk.start, chunk.stop) for b in phases]
            own = None if rates is None else rates.of(chunk)
            return self._chunk(rows(sent, chunk), self._of(read, chunk), mine, lr, own)

        parts = self.cohort.spread(one, chunks)
        return Report(
            clients=torch.cat([part.clients for part in parts]),
            sent=sent,
            got={name: torch.cat([part.got[name] for part in parts]) for name in parts[0].got},
            seen={name: torch.cat([part.seen[name] for part in parts]) for name in parts[0].seen},
            weight=torch.cat([part.weight for part in parts]),
            steps=torch.cat([part.steps for part in parts]),
            loss=torch.cat([part.loss for part in parts]),
            lr=lr,
            gradient={name: torch.cat([part.gradient[name] for part in parts]) for name in parts[0].gradient},
        )

    def _of(self, read: Stacked, clients: slice) -> Stacked:
        return rows(read, clients) if self.cohort.several_servers else read

    def _chunk(self, sent: Stacked, read: Stacked, phases: list[Batches], lr: float, rates: Rates | None) -> Report:
        values = {name: value.clone() for name, value in sent.items()}
        count = len(phases[0].clients)
        device = self.cohort.labels.device
        total = torch.zeros(count, device=device, dtype=torch.float64)
        samples, steps = torch.zeros_like(total), torch.zeros_like(total)
        seen: Stacked = {}
        shared = [n for n, param in self.cohort.spec.items() if param.aggregated]
        gradient: Stacked = (
            {n: torch.zeros_like(values[n]) for n in shared} if self.aggregation.wants_gradient else {}
        )  # sums over steps, of all phases that train a name
        taken = {name: torch.zeros_like(steps) for name in gradient}
        for phase, batches in zip(self.phases, phases, strict=True):
            leaves = {name: values[name].requires_grad_() for name in phase.names}
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
                live = {name: value if active == count else value[now] for name, value in values.items()}
                live |= self._of(read, now)
                n = weight[step, now].sum(1)
                gradients: list[Tensor | None] = [None] * len(leaves)
                for start in range(0, int(filled[step]), self.piece):
                    at = (step, now, slice(start, min(start + self.piece, int(filled[step]))))
                    draws = (index[at], weight[at], flip[at], shift[at])
                    losses, sums = self._loss(phase, live, rows(sent, now), draws, n, first=start == 0)
                    for name, value in sums.items():
                        seen.setdefault(name, value.new_zeros(count, *value.shape[1:]))[now] += value
                    new = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
                    gradients = [
                        b if a is None else a if b is None else a + b for a, b in zip(gradients, new, strict=True)
                    ]
                    total[now] += losses.detach() * n
                if step == 0:
                    self._moves_all(phase, gradients)
                if rates is not None:
                    clip(gradients, rates.clip)
                elif self.local.clip is not None:
                    clip(gradients, self.local.clip)
                for name, g in zip(leaves, gradients, strict=True):
                    if name in gradient and g is not None:
                        gradient[name] += g  # of clients that stand still it is zero
                        taken[name][now] += 1
                self._step(leaves, gradients, optimizer, active, phase.cohort, read, rates)
                samples[now] += n
                steps[now] += 1
            for name in phase.names:
                values[name] = leaves[name].detach().requires_grad_(False)
        gradient = {n: g / per_client(taken[n], g).to(g) for n, g in gradient.items()}
        got = {name: value.detach() for name, value in values.items()}
        own = torch.from_numpy(np.array(phases[0].clients)).to(device)
        epochs = max(1, self.local.epochs * len(phases))
        mean_loss = total / samples.clamp(min=1)
        return Report(own, sent, got, seen, samples / epochs, steps, mean_loss, lr, gradient)

    def _moves_all(self, phase: Phase, gradients: Sequence[Tensor | None]) -> None:
        """Raise HookError where the loss does not depend on a value that the phase trains."""
        for name, gradient in zip(phase.names, gradients, strict=True):
            if gradient is None:
                method = phase.cohort.method
                raise HookError(
                    f"{told(method.params)} declares {name!r} as trained"
                    + ("" if method.phase is None else f" and phase {method.phase} trains it")
                    + ", but the loss does not depend on it: no hook uses it"
                )

    def _loss(
        self, phase: Phase, live: Stacked, sent: Stacked, draws: tuple[Tensor, ...], n: Tensor, first: bool
    ) -> tuple[Tensor, Stacked]:
        """The part of each client's mean loss [K] over its batch of `n` [K] samples that the samples of `draws` make, and
        what `observe` sums over them. Terms about parameters alone belong to the `first` part."""
        cohort, method = phase.cohort, phase.cohort.method
        index, weight, flip, shift = draws
        prior, augment = method.logit_prior in ("train", "both"), self.local.augment
        result = cohort.forward(live, index, prior, augment, flip, shift)
        y = cohort.labels[index]
        losses = F.cross_entropy(result.logits.flatten(0, 1), y.flatten(), reduction="none").view_as(weight)
        loss = masked_sum(losses, weight) / n
        dims = cohort.dims(live)
        query_dim = None if result.query is None else 0
        if method.extra_loss is not None:
            shared = {name: value for name, value in sent.items() if cohort.spec[name].home == "shared"}
            for name, view in phase.views.items():
                seen_so = view.forward(live, index, False, augment, flip, shift)
                result.out[f"{name}.cls"] = seen_so.out["cls"]
            args = (live, shared, result.out, result.query)
            extra = cohort.each(method.extra_loss, args, (dims, 0, 0, query_dim))
            if extra.shape not in (weight.shape, n.shape):
                raise HookError(
                    f"{told(method.extra_loss)}: expected a scalar or [B] = [{weight.shape[1]}] for one client, given "
                    f"{list(extra.shape[1:])}"
                )
            loss = loss + (masked_sum(extra, weight) / n if extra.dim() == 2 else extra * first)
        if self.aggregation.extra_loss is not None and first and not self.finetuning:
            shared = {name: sent[name] for name, param in cohort.spec.items() if param.aggregated}
            if shared:  # else nothing holds the clients together
                loss = loss + cohort.each(self.aggregation.extra_loss, (live, shared), (dims, 0))
        if method.observe is None or self.finetuning:
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
        self,
        leaves: Stacked,
        gradients: Sequence[Tensor | None],
        optimizer: torch.optim.Optimizer,
        active: int,
        cohort: Cohort,
        read: Stacked,
        rates: Rates | None,
    ) -> None:
        """One optimiser step of the first `active` clients; the others stand still (weight decay and momentum too)."""
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        steer = cohort.method.steer
        kept = active if steer is None and rates is None else 0
        before = {name: leaf.detach()[kept:].clone() for name, leaf in leaves.items()}
        optimizer.step()
        with torch.no_grad():
            if rates is not None:  # the step of every optimiser here is proportional to its rate
                for name, leaf in leaves.items():
                    leaf.copy_(before[name] + per_client(rates.lr, leaf).to(leaf) * (leaf - before[name]))
            if steer is not None:
                taken = {name: leaf.detach() - before[name] for name, leaf in leaves.items()}
                p = before | read
                mapped = cohort.each(steer, (p, taken), (cohort.dims(p), 0))
                for name, step in mapped.items():
                    leaves[name][:active] = (before[name] + step)[:active]
            for name, value in before.items():
                if active < len(leaves[name]):
                    leaves[name][active:] = value[active - kept :]


def masked_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum over samples [K, B] -> [K], of which padding (weight 0) is no part."""
    return (values * weight).sum(1)


def clip(gradients: Sequence[Tensor | None], largest: float | Tensor) -> None:
    """Scale each client's gradient, over all its tensors [K, ...], to a norm of at most `largest` (or [K]), in place."""
    present = [gradient for gradient in gradients if gradient is not None]
    squares = torch.stack([gradient.reshape(len(gradient), -1).square().sum(1) for gradient in present]).sum(0)
    factor = (largest / squares.sqrt().clamp(min=1e-12)).clamp(max=1)
    for gradient in present:
        gradient.mul_(per_client(factor, gradient).to(gradient))


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


def idle(clients: Tensor, sent: Stacked, samples: Sequence[int], lr: float) -> Report:
    """The report of clients that train nothing: a method without training, whose server learns from statistics alone."""
    weight = torch.tensor(samples, dtype=torch.float64, device=clients.device)
    return Report(clients, sent, {}, {}, weight, torch.zeros_like(weight), torch.full_like(weight, torch.nan), lr)
