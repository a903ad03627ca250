"""Novel accuracy: right answers to samples of the classes that no client trains, scored among these alone.

Source: the base-to-new protocol of Zhou et al., CVPR 2022 (CoCoOp), arXiv 2203.05557. ``clients.novel`` is the
share of novel classes.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedbench import method
from fedbench.method import Predictions


@dataclass(frozen=True)
class Metric(method.Metric):
    """The novel classes of a base-to-novel run."""

    citation: ClassVar[str] = "Zhou et al. 2022, arXiv 2203.05557"

    def measure(self, predictions: Predictions) -> float | None:
        """Accuracy among the novel classes."""
        return predictions.accuracy_of(novel=True)
