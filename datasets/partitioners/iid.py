"""IID: all samples are shuffled and cut into equal parts, so clients do not differ.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv:1602.05629):
shuffle and cut (paper). Test samples are dealt the same way (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench import data


@dataclass(frozen=True)
class Partitioner(data.Partitioner):
    """Equal parts of the shuffled samples."""

    citation: ClassVar[str] = "McMahan et al. 2017, arXiv:1602.05629"

    def groups(self, samples: data.Samples) -> data.Ints:
        """One group of all samples."""
        return np.zeros(len(samples.labels), dtype=np.int64)

    def shares(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> NDArray[np.float64]:
        """Equal shares, [1, clients]."""
        return np.full((1, clients), 1 / clients)
