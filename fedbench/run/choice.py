"""What clients choose by loss, on their training samples, before they train or are evaluated: `choose_by_loss`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedbench.data import Ints
from fedbench.data.batches import padded
from fedbench.method import HookError
from fedbench.method.hooks import describe
from fedbench.run.local import Trainer, cross_entropy, masked_sum
from fedbench.run.stacked import Stacked, rows
from fedbench.run.stacked_model import StackedModel
from fedbench.vit.images import sent_to


@torch.no_grad()
def chosen(trainer: Trainer, received: Stacked, read: Stacked, parts: Sequence[Ints]) -> tuple[Stacked, Stacked]:
    """`received` {name: [K, ...]} with what the clients choose in its place, and what they report, {name: [K, ...]}.

    read: the server's values that clients read; parts: the training samples of each client. Raises HookError if the method
    chooses a value that clients do not hold, or one of another shape.
    """
    model, hook = trainer.model, trainer.model.method.choose_by_loss
    if hook is None:
        return received, {}
    width = min(trainer.piece, trainer.local.batch_size)

    def choose(clients: slice) -> Stacked:
        p = rows(received, clients) | model.read_rows(read, clients)
        losses = {
            name: _mean_loss(
                replace(model, method=model.method.at(view=name)),
                p,
                parts[clients],
                width,
                trainer.local.label_smoothing,
            )
            for name in model.method.candidates
        }
        made: Stacked = model.each(hook, (p, losses), (model.dims(p), 0))
        return made

    made = [choose(slice(i, i + trainer.chunk)) for i in range(0, len(parts), trainer.chunk)]
    values = {name: torch.cat([part[name] for part in made]) for name in made[0]}
    for name in values.keys() & model.spec.keys():
        if name not in received or values[name].shape != received[name].shape:
            expected = list(received[name].shape[1:]) if name in received else "no value of a client"
            raise HookError(f"{describe(hook)}: {name!r} of shape {list(values[name].shape[1:])}, expected {expected}")
    reported = {name: value for name, value in values.items() if name not in model.spec}
    return received | {name: value for name, value in values.items() if name in model.spec}, reported


def _mean_loss(model: StackedModel, p: Stacked, parts: Sequence[Ints], width: int, label_smoothing: float) -> Tensor:
    """The mean cross entropy [K] of the clients on their samples `parts`, `width` samples of each client at a time."""
    sizes = np.array([len(part) for part in parts])
    index = padded(parts)
    device, dtype = model.labels.device, model.images.dtype
    weight = sent_to(device, np.arange(index.shape[1]) < sizes[:, None]).to(dtype)
    total = torch.zeros(len(parts), device=device, dtype=dtype)
    for start in range(0, index.shape[1], width):
        here = model.sample_index(index[:, start : start + width].copy())
        logits = model.forward(p, here, model.method.adds_prior_in_training).logits
        y = model.labels[model.on_device(here)]
        losses = cross_entropy(logits, y, label_smoothing)
        total += masked_sum(losses, weight[:, start : start + width])
    return total / sent_to(device, sizes)  # every client has training samples
