"""Prompt-free features: the frozen backbone's final CLS token of every image, computed once and shared by all runs."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedbench.data import Samples
from fedbench.vit.backbone import Backbone
from fedbench.vit.images import Images
from fedbench.vit.thread_map import thread_map

log = logging.getLogger("fedbench")


def data_hash(samples: Samples) -> str:
    """16 hex digits of the labels and the images (of 4,096 evenly spaced images where there are more than 100,000)."""
    count = len(samples.labels)
    step = 1 if count <= 100_000 else count // 4096
    digest = hashlib.sha256(repr(samples.images.shape).encode() + samples.labels.tobytes() + samples.is_test.tobytes())
    for start in range(0, count, step * 1024):
        digest.update(np.ascontiguousarray(samples.images[start : start + step * 1024 : step]).data)
    return digest.hexdigest()[:16]


def features(backbone: Backbone, images: Images, name: str, root: Path) -> Tensor:
    """The features [N, D] of all images, read from the cache `root`/features/`name`.npy, or computed and stored there.

    The file is written under another name and then moved, so jobs that need it at the same time at worst compute it twice.
    """
    path = root / "features" / f"{name}.npy"
    if path.exists():
        try:
            cached = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError):
            cached = None  # truncated by a full disk or a copy: compute it again
        if cached is not None and cached.shape == (len(images), backbone.width):
            return torch.from_numpy(cached).to(images.device, images.dtype)

    @torch.inference_mode()
    def part(index: Tensor) -> Tensor:
        result: Tensor = backbone(images.batch(index), slots_read=False)[0]["cls"]
        return result

    parts = thread_map(part, images.passes(), images.device)
    result = torch.cat(parts).clone()
    _store(path, result)
    return result


def _store(path: Path, result: Tensor) -> None:
    """Write features to the cache. If the disk is full or read-only, warn; the next run computes them again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, result.cpu().numpy(), allow_pickle=False)
            os.replace(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: features cannot be cached (%s)", path, error)
