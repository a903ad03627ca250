"""Top-k: each client sends only the largest numbers of its change, with their places.

Source: Stich et al. 2018, arXiv 1809.07599, algorithm 1 (paper), with error feedback. Here the change is that of a round, k is
chosen for each trained shared value of any method, and the server averages the changes by n_k (ours). A number takes 4 bytes
and its place 4 more, so `share` must be below a half to save anything.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import CompressedUploads, Fidelity, Values, option


@dataclass(frozen=True)
class Aggregation(CompressedUploads):
    """The largest numbers of each change."""

    share: Annotated[float, Field(gt=0, le=1)] = option(
        0.1, "share of each value's numbers that a client sends, at least one"
    )

    citation: ClassVar[str] = "Stich et al. 2018, arXiv 1809.07599"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def compress(self, change: Tensor) -> dict[str, Tensor]:
        """The k largest absolute numbers [k] and their places [k]."""
        at = change.abs().topk(math.ceil(self.share * change.numel())).indices
        return {"numbers": change[at], "places": at.to(torch.int32)}

    def expand(self, parts: Values, like: Tensor) -> Tensor:
        """The numbers at their places, and zeros."""
        return torch.zeros_like(like).scatter(0, parts["places"].long(), parts["numbers"].to(like.dtype))
