"""Checks of metrics, on small random predictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from fedbench.contract import ContractError, check
from fedbench.method import Metric, Predictions

SAMPLES, CLASSES, CLIENTS, DOMAINS = 60, 5, 4, 3


def _cases() -> Iterator[tuple[str, Predictions]]:
    """Random predictions with and without domains, all right, all wrong, of one class, and of a single sample."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(SAMPLES, CLASSES, generator=draw, dtype=torch.float64)
    labels = torch.randint(CLASSES - 1, (SAMPLES,), generator=draw)  # the last class has no sample
    clients, domains = (torch.randint(high, (SAMPLES,), generator=draw) for high in (CLIENTS, DOMAINS))
    random = Predictions(scores, labels, clients, domains)
    yield "random predictions", random
    yield "predictions without domains", dataclasses.replace(random, domains=None)
    yield "predictions that are all right", dataclasses.replace(random, labels=random.predicted)
    yield "predictions that are all wrong", dataclasses.replace(random, labels=(random.predicted + 1) % CLASSES)
    yield "samples of one class", dataclasses.replace(random, labels=torch.zeros_like(labels))
    yield "a single sample", Predictions(scores[:1], labels[:1], clients[:1], domains[:1])


@check("metric")
def measures_are_shares(metric: Metric) -> None:
    """measure() returns a share from 0 to 1, or None."""
    for what, predictions in _cases():
        value = metric.measure(predictions)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e-9 <= value <= 1 + 1e-9:
            raise ContractError("measure()", "a number from 0 to 1, or None", f"{value!r} for {what}")


@check("metric")
def the_order_of_samples_has_no_effect(metric: Metric) -> None:
    """measure() does not depend on the order of the samples."""
    draw = torch.Generator().manual_seed(1)
    for what, predictions in (case for _ in range(3) for case in _cases()):
        order = torch.randperm(len(predictions.labels), generator=draw)
        domains = None if predictions.domains is None else predictions.domains[order]
        parts = (predictions.scores[order], predictions.labels[order], predictions.clients[order])
        first, again = metric.measure(predictions), metric.measure(Predictions(*parts, domains))
        if first != again and not (
            first is not None and again is not None and math.isclose(first, again, abs_tol=1e-9)
        ):
            raise ContractError(
                "measure()", "the same number for samples in another order", f"{first} and {again}, {what}"
            )


CHECKS = (measures_are_shares, the_order_of_samples_has_no_effect)
