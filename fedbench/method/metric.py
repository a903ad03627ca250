"""The metric contract: a number of an evaluation, from the scores of all test samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedbench.method.hooks import hook


@dataclass(frozen=True)
class Predictions:
    """The N test samples of all clients that train, each scored by its client's model. On the host.

    ``scores`` [N, C] in float64; ``labels``, ``clients`` and ``domains`` [N]; ``domains`` is None if the dataset has none.
    """

    scores: Tensor
    labels: Tensor
    clients: Tensor
    domains: Tensor | None = None
    base: Tensor | None = None  # [C] which classes have training samples; None: all

    @property
    def predicted(self) -> Tensor:
        """[N] the classes with the largest scores."""
        return self.scores.argmax(1)

    def accuracy_of(self, novel: bool) -> float | None:
        """The share of right answers to samples of base or novel classes, scored among these alone; None without samples."""
        base = torch.ones(self.scores.shape[1], dtype=torch.bool) if self.base is None else self.base
        classes = ~base if novel else base
        here = classes[self.labels]
        scores = self.scores[here].masked_fill(~classes, -torch.inf)
        return float((scores.argmax(1) == self.labels[here]).double().mean()) if bool(here.any()) else None

    @property
    def correct(self) -> Tensor:
        """[N] whether each prediction is right."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Metric:
    """Base of all metrics: a frozen dataclass called ``Metric`` in a file of ``methods/metrics/``.

    The key `metrics` of a run names them, and its records hold the column ``metric.<name>``.
    """

    citation: ClassVar[str] = "ours"

    @hook
    def measure(self, predictions: Predictions) -> float | None:
        """A share from 0 to 1, or None if it is not defined for these samples. Called at every evaluation of test data."""
        raise TypeError(f"{type(self).__module__}: a metric must define measure()")
