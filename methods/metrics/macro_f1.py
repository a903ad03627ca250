"""Macro F1: the unweighted mean over classes of the harmonic mean of precision and recall.

Classes without a test sample are left out. A class that is never predicted has F1 = 0.
"""

from dataclasses import dataclass

import torch

from fedbench import method
from fedbench.method import Predictions


@dataclass(frozen=True)
class Metric(method.Metric):
    """F1, averaged over classes."""

    def measure(self, predictions: Predictions) -> float | None:
        """2 TP / (samples of the class + predictions of the class), averaged over the classes that occur."""
        classes = predictions.scores.shape[1]
        labels, predicted = predictions.labels, predictions.predicted
        hits = torch.bincount(labels[predictions.correct], minlength=classes)
        samples, guesses = (torch.bincount(values, minlength=classes) for values in (labels, predicted))
        occurs = samples > 0
        return (2 * hits[occurs] / (samples + guesses)[occurs]).double().mean().item()
