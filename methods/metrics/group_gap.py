"""Group gap: a measure of group fairness, the largest difference in accuracy between two groups of test samples.

A group is the samples of a domain of the dataset, such as a camera or a drawing style, or of a client. 0: all groups are
served alike.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from fedbench import method
from fedbench.method import Predictions, option


@dataclass(frozen=True)
class Metric(method.Metric):
    """The accuracy of the best group minus that of the worst."""

    groups: Literal["client", "domain"] = option(
        "client", "what a group is; domain: null for a dataset without domains"
    )

    def measure(self, predictions: Predictions) -> float | None:
        """Accuracy of each group that has samples: largest minus smallest."""
        group = predictions.clients if self.groups == "client" else predictions.domains
        if group is None:
            return None
        samples = torch.bincount(group)
        hits = torch.bincount(group[predictions.correct], minlength=len(samples))
        accuracy = hits[samples > 0].double() / samples[samples > 0]
        return (accuracy.max() - accuracy.min()).item()
