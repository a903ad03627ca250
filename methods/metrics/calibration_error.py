"""Expected calibration error: the mean distance between confidence and accuracy, over bins of confidence.

Source: Guo et al. 2017, arXiv 1706.04599, equation 3 (paper): bins ((m - 1)/M, m/M] of the largest probability of softmax,
weighted by their numbers of samples. 0 is perfect.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fedbench import method
from fedbench.method import Predictions, option


@dataclass(frozen=True)
class Metric(method.Metric):
    """The expected calibration error (ECE)."""

    bins: Annotated[int, Field(ge=1)] = option(15, "M: bins of equal width")

    citation: ClassVar[str] = "Guo et al. 2017, arXiv 1706.04599"

    def measure(self, predictions: Predictions) -> float | None:
        """sum over bins of |sum of confidences - right answers|, over the number of samples."""
        confidence = predictions.scores.softmax(1).amax(1)
        at = (confidence * self.bins).ceil().long() - 1
        gaps = torch.zeros(self.bins, dtype=torch.float64).index_add(0, at, confidence - predictions.correct.double())
        return gaps.abs().sum().item() / len(confidence)
