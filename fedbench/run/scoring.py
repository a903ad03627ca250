"""The metric plug-ins of a run: the scores of all test samples, and the numbers that the metrics make of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedbench.data import Ints
from fedbench.data.batches import padded
from fedbench.method import HookError, Predictions
from fedbench.method.hooks import describe
from fedbench.run.evaluation import blocks_of, personal
from fedbench.run.experiment import Experiment
from fedbench.run.stacked import call_hook, rows

PREFIX = "metric."  # of the columns of records


def measured(experiment: Experiment) -> dict[str, float | None]:
    """{column: share or None} of the run's metrics; {} without metrics or without test data. Raises HookError."""
    if not experiment.metrics or not experiment.run.test_data:
        return {}
    scored = predictions(experiment)
    values = {}
    for name, metric in experiment.metrics.items():
        value = call_hook(metric.measure, lambda metric=metric: metric.measure(scored))  # type: ignore[misc]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and -1e-9 <= value <= 1 + 1e-9):
            raise HookError(f"{describe(metric.measure)}: expected a share from 0 to 1 or None, found {value!r}")
        values[PREFIX + name] = None if value is None else min(1.0, max(0.0, float(value)))
    return values


@torch.inference_mode()
def predictions(experiment: Experiment) -> Predictions:
    """The scores of the test samples of all clients that train, each by the values with which it is evaluated."""
    split, model, samples = experiment.split, experiment.model, experiment.samples
    clients = np.array([k for k in np.flatnonzero(~split.held_out) if len(split.test[int(k)])])
    scores: list[Tensor] = []
    order: list[Ints] = []
    for block in np.array_split(clients, -(-len(clients) // 64)):  # the values of 64 clients at a time
        values, read = model.prepared(personal(experiment, block), experiment.server.read())
        parts = [split.test[int(k)] for k in block]
        for group in blocks_of(parts, experiment.chunk, model.method.backbone_weights is not None):
            index = padded([part for _, part in group])
            at = torch.tensor([row for row, _ in group], device=model.labels.device)
            p = rows(values, at) | read
            prior = model.method.adds_prior_in_evaluation
            logits = model.forward(p, model.sample_index(index.ravel()).view(index.shape), prior).logits
            scores += [part.double().cpu() for part in _without_padding(logits, group)]
            order += [np.stack([np.full(len(part), block[row]), part]) for row, part in group]
    of_client, sample = np.concatenate(order, 1)
    domain = None if samples.domain is None else torch.from_numpy(np.asarray(samples.domain)[sample].astype(np.int64))
    labels = torch.from_numpy(np.asarray(samples.labels)[sample].astype(np.int64))
    base = torch.from_numpy(split.class_counts(samples.labels, samples.num_classes).sum(0) > 0)
    return Predictions(torch.cat(scores), labels, torch.from_numpy(of_client), domain, base)


def _without_padding(logits: Tensor, group: Sequence[tuple[int, Ints]]) -> list[Tensor]:
    return [scores[: len(part)] for scores, (_, part) in zip(logits, group, strict=True)]
