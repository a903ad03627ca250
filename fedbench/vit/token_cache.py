"""Cached activations: the tokens that enter a method's first prompted block are the same in all runs and computed once."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.data import DataError
from fedbench.method import Method
from fedbench.sources.cache import cached_arrays
from fedbench.vit.backbone import Backbone
from fedbench.vit.images import Images, sent_to
from fedbench.vit.thread_map import thread_map

log = logging.getLogger("fedbench")

PASSES_PER_WRITE = 8  # passes whose tokens are in memory before they are written to disk
GB = 1e9


@dataclass(frozen=True)
class CachedTokens:
    """The tokens [N, 1+T, D] that enter block `layer` of every image without prompts, mapped from disk."""

    layer: int
    tokens: NDArray[Any]
    device: torch.device

    def __call__(self, index: Tensor) -> Tensor:
        """The tokens of the images `index` [n]: [n, 1+T, D]."""
        return sent_to(self.device, np.asarray(self.tokens[index.cpu().numpy()]))


def first_block(method: Method, depth: int) -> int:
    """The first block that a prompt or prefix enters or a tap reads, in any phase or view.

    If there is none: the last block for a method that reads patches, else 0. 0 also if the method changes pixels or backbone
    weights: then no block can be cached.
    """
    if method.pixels is not None or method.backbone_weights is not None:
        return 0
    phases = (None, *range(len(method.phases or ())))
    forms = [method.at(phase, view) for phase in phases for view in (None, *method.views, *method.candidates)]
    default = depth - 1 if method.reads_patches else 0
    return min((layer for form in forms for layer in (*form.layers(depth), *form.taps(depth))), default=default)


def cached_tokens(
    backbone: Backbone, images: Images, layer: int, autocast: bool, folder: Path, most_gb: float
) -> CachedTokens | None:
    """The tokens entering block `layer`, from the cache `folder`, or computed and put there.

    None, with a line in the log, if they would take more than `most_gb` gigabytes or nothing can be written. A run then
    computes them whenever it needs them.
    """
    shape = (len(images), backbone.tokens, backbone.width)
    kind = torch.empty(0, dtype=images.dtype).numpy().dtype
    size = math.prod(shape) * kind.itemsize / GB
    if size > most_gb:
        log.info("tokens entering block %d would take %.3g GB: machine.token_cache_gb is %g", layer, size, most_gb)
        return None

    @torch.inference_mode()
    def part(index: Tensor) -> NDArray[Any]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            tokens = backbone.entering(images.batch(index), layer)
        array: NDArray[Any] = tokens.to(images.dtype).cpu().contiguous().numpy()
        return array

    def build(place: Path) -> None:
        with open(place / "tokens.npy", "wb") as file:  # not a memory map: a full disk would kill the process
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            passes = images.passes()
            for start in range(0, len(passes), PASSES_PER_WRITE):
                for tokens in thread_map(part, passes[start : start + PASSES_PER_WRITE], images.device):
                    file.write(tokens.data)

    try:
        return CachedTokens(layer, cached_arrays(folder, build)["tokens"], images.device)
    except DataError as error:
        log.warning("tokens entering block %d are not cached: %s", layer, error)
        return None
