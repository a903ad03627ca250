"""An optimiser for K stacked clients: torch.optim is element-wise, so one optimiser on stacked tensors is K optimisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.method import Param
from fedbench.plan.config import LocalConfig
from fedbench.run.stacked import Stacked, per_client

Steer = Callable[[Stacked, Stacked], Stacked]  # (values before the step, step) -> the step to take


@dataclass(frozen=True)
class Recipe:
    """The learning rate and the gradient clipping of a round.

    Both may differ between clients of different runs that are trained together. Then `lr` is the largest rate, ``lr_share``
    [K] each client's share of it, and `clip` [K] the largest norm of each client's gradient (infinite: no clipping).
    """

    lr: float
    clip: float | Tensor | None = None
    lr_share: Tensor | None = None

    def rows(self, clients: slice) -> Recipe:
        """The recipe of some of the clients."""
        share = None if self.lr_share is None else self.lr_share[clients]
        return Recipe(self.lr, self.clip[clients] if isinstance(self.clip, Tensor) else self.clip, share)


class ClientOptimizer:
    """Optimises `leaves` {name: [K, ...]} in place. Its state is reset in each round, as that of a client's optimiser is."""

    def __init__(self, leaves: Stacked, spec: Mapping[str, Param], local: LocalConfig, recipe: Recipe) -> None:
        self.leaves, self.recipe = leaves, recipe
        groups = [{"params": [leaf], "lr": recipe.lr * spec[name].lr_scale} for name, leaf in leaves.items()]
        decay = local.weight_decay
        self.optimizer: torch.optim.Optimizer
        if local.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=local.momentum, weight_decay=decay)
        elif local.optimizer == "adam":
            self.optimizer = torch.optim.Adam(groups, lr=recipe.lr, weight_decay=decay)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=decay)

    def clip(self, gradients: Sequence[Tensor | None]) -> None:
        """Clip each client's gradient in place, as the recipe says."""
        if self.recipe.clip is not None:
            clip(gradients, self.recipe.clip)

    def step(self, gradients: Sequence[Tensor | None], active: int, steer: Steer | None = None) -> None:
        """One step of the first `active` clients; the others' values stay as they are."""
        for leaf, gradient in zip(self.leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        share = self.recipe.lr_share
        kept = active if steer is None and share is None else 0  # values before the step that are needed after it
        before = {name: leaf.detach()[kept:].clone() for name, leaf in self.leaves.items()}
        self.optimizer.step()
        with torch.no_grad():
            if share is not None:  # the step of each of these optimisers is proportional to its learning rate
                for name, leaf in self.leaves.items():
                    leaf.copy_(before[name] + per_client(share, leaf).to(leaf) * (leaf - before[name]))
            if steer is not None:
                taken = {name: leaf.detach() - before[name] for name, leaf in self.leaves.items()}
                for name, step in steer(before, taken).items():
                    self.leaves[name][:active] = (before[name] + step)[:active]
            for name, value in before.items():
                if active < len(self.leaves[name]):
                    self.leaves[name][active:] = value[active - kept :]


def clip(gradients: Sequence[Tensor | None], largest: float | Tensor) -> None:
    """Scale each client's gradient, over all its tensors [K, ...], to a norm of at most `largest` (or [K]), in place."""
    present = [gradient for gradient in gradients if gradient is not None]
    squares = torch.stack([gradient.reshape(len(gradient), -1).square().sum(1) for gradient in present]).sum(0)
    factor = (largest / squares.sqrt().clamp(min=1e-12)).clamp(max=1)
    for gradient in present:
        gradient.mul_(per_client(factor, gradient).to(gradient))
