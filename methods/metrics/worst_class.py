"""Worst class: the lowest accuracy of a class that has test samples."""

from dataclasses import dataclass

import torch

from fedbench import method
from fedbench.method import Predictions


@dataclass(frozen=True)
class Metric(method.Metric):
    """The lowest recall over classes."""

    def measure(self, predictions: Predictions) -> float | None:
        """Right answers over samples of each class, of which the smallest."""
        samples = torch.bincount(predictions.labels)
        hits = torch.bincount(predictions.labels[predictions.correct], minlength=len(samples))
        return (hits[samples > 0] / samples[samples > 0]).double().min().item()
