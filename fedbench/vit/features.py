"""Prompt-free features: what a head reads of the frozen backbone for every image, computed once and shared by all runs."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedbench.data import DataError, Samples
from fedbench.sources.cache import cached_arrays
from fedbench.vit.backbone import Backbone
from fedbench.vit.images import Images
from fedbench.vit.thread_map import thread_map

log = logging.getLogger("fedbench")


def data_hash(samples: Samples) -> str:
    """16 hex digits of the labels and the images (of 4,096 evenly spaced images if there are more than 100,000)."""
    count = len(samples.labels)
    step = 1 if count <= 100_000 else count // 4096
    digest = hashlib.sha256(repr(samples.images.shape).encode() + samples.labels.tobytes() + samples.is_test.tobytes())
    for start in range(0, count, step * 1024):
        digest.update(np.ascontiguousarray(samples.images[start : start + step * 1024 : step]).data)
    return digest.hexdigest()[:16]


def features(backbone: Backbone, images: Images, name: str, root: Path, after: int | None = None) -> Tensor:
    """The features [N, D] of all images, from the cache `name` below the data folder `root`, or computed and put there.

    after: the block after which they are read; None: the last.

    If nothing can be written, the features are computed each time and a warning is logged: a full disk costs the next run some
    time and does not end this run.
    """
    computed: list[Tensor] = []

    def build(aside: Path) -> None:
        computed.append(_compute(backbone, images, after))
        np.save(aside / "features.npy", computed[0].cpu().numpy(), allow_pickle=False)

    try:
        arrays = cached_arrays(root / "features" / (name if after is None else f"{name}-after{after}"), build)
    except DataError as error:
        log.warning("features are not cached: %s", error)
        return computed[0] if computed else _compute(backbone, images, after)
    return torch.from_numpy(np.array(arrays["features"])).to(images.device, images.dtype)


@torch.inference_mode()
def _compute(backbone: Backbone, images: Images, after: int | None) -> Tensor:
    def part(index: Tensor) -> Tensor:
        return backbone.feature(images.batch(index), after)

    return torch.cat(thread_map(part, images.passes(), images.device)).clone()
