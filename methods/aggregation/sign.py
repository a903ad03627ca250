"""Sign uploads: each client sends its change with 1 bit for each number, and one scale for each value.

Source: Karimireddy et al. 2019, arXiv 1901.09847 (EF-signSGD, paper), algorithm 1: a client sends sign(c) and the scale
||c||_1 / n of its change c with n numbers, and adds what this leaves out to its next change. Here c is the change of a
round, each trained shared value of any method has its own scale, the server averages the changes by n_k, and zero counts as
positive (ours). A byte holds 8 signs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedbench.method import CompressedUploads, Fidelity, Values


@dataclass(frozen=True)
class Aggregation(CompressedUploads):
    """Changes in 1 bit."""

    citation: ClassVar[str] = "Karimireddy et al. 2019, arXiv 1901.09847"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def compress(self, change: Tensor) -> dict[str, Tensor]:
        """The signs in bytes [ceil(n / 8)], the first in the lowest bit (1: not negative), and the scale []."""
        bits = torch.nn.functional.pad((change >= 0).to(torch.uint8), (0, -change.numel() % 8))
        places = torch.arange(8, dtype=torch.uint8, device=change.device)
        packed = (bits.view(-1, 8) << places).sum(-1, dtype=torch.uint8)
        return {"signs": packed, "scale": change.abs().mean()}

    def expand(self, parts: Values, like: Tensor) -> Tensor:
        """The scale with the sign of each number."""
        places = torch.arange(8, dtype=torch.uint8, device=like.device)
        positive = (parts["signs"][:, None] >> places & 1).flatten()[: like.numel()]
        return torch.where(positive == 1, parts["scale"], -parts["scale"]).to(like.dtype)
