"""Quantised uploads: each client sends its change with 8 bits for each number, and one scale for each value.

Source: Reisizadeh et al. 2020, arXiv 1909.13014 (FedPAQ, paper), which quantises the changes of a round. Here a number is
rounded to the nearest of the 255 multiples of max |change| / 127, not at random, and error feedback keeps what rounding
leaves out (ours). It applies to the trained shared values of any method.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedbench.method import CompressedUploads, Fidelity, Values


@dataclass(frozen=True)
class Aggregation(CompressedUploads):
    """Changes in 8 bits."""

    citation: ClassVar[str] = "Reisizadeh et al. 2020, arXiv 1909.13014"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def compress(self, change: Tensor) -> dict[str, Tensor]:
        """Multiples [n] of the scale [] between -127 and 127."""
        scale = change.abs().amax() / 127
        multiples = torch.where(scale > 0, change / scale, 0).round()
        return {"multiples": multiples.to(torch.int8), "scale": scale}

    def expand(self, parts: Values, like: Tensor) -> Tensor:
        """The multiples times the scale."""
        return parts["multiples"].to(like.dtype) * parts["scale"].to(like.dtype)
