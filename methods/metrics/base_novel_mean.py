"""Base-novel mean: the harmonic mean of the accuracies among base classes and among novel classes.

Source: the base-to-new protocol of Zhou et al., CVPR 2022 (CoCoOp), arXiv 2203.05557. ``clients.novel`` is the
share of novel classes.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedbench import method
from fedbench.method import Predictions


@dataclass(frozen=True)
class Metric(method.Metric):
    """The harmonic mean of base and novel accuracy."""

    citation: ClassVar[str] = "Zhou et al. 2022, arXiv 2203.05557"

    def measure(self, predictions: Predictions) -> float | None:
        """2 b n / (b + n), or None without samples of both kinds."""
        base, novel = predictions.accuracy_of(novel=False), predictions.accuracy_of(novel=True)
        if base is None or novel is None:
            return None
        return 2 * base * novel / (base + novel) if base + novel else 0.0
