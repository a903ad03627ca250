"""Images on the device: kept as uint8, and resized, augmented and normalised in batches, without Python code per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fedbench.vit import resize

Augment = Literal["none", "flip", "crop_flip"]

PASS = 64  # images in a pass for cached results; fixed, since another size would change the last bits
RESIDENT_BYTES = 4 << 30  # resized images up to this size stay on the device, or else source images up to this size


class Images:
    """N images at the backbone's size, normalised with its mean and standard deviation.

    Resizing (bicubic, antialiased) always rounds to uint8, so keeping resized images changes no result. If the resized images
    exceed `RESIDENT_BYTES`, a GPU keeps the source images if those fit, and resizes each batch. Larger sets stay on the host
    (``resident`` is False): then `batch` reads the images of its index there.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.size, self.device, self.dtype = images, size, device, dtype
        mean_, std_ = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        self.scale, self.offset = (1 / (255 * std_)).to(device, dtype), (-mean_ / std_).to(device, dtype)
        self.pixels: Tensor | None = None  # [N, 3, S, S]
        self.raw: Tensor | None = None  # [N, 3, H, W] at source size
        if len(images) * 3 * size * size <= RESIDENT_BYTES:
            self.pixels = self._on_device(self._resized, size, size)
        elif device.type != "cpu" and images.nbytes <= RESIDENT_BYTES:
            self.raw = self._on_device(lambda raw: raw, *images.shape[1:3])
        self.resident = self.pixels is not None or self.raw is not None

    def _on_device(self, transform: Callable[[Tensor], Tensor], height: int, width: int) -> Tensor:
        """All source images after `transform`, [N, 3, height, width]."""
        pixels = torch.empty(len(self), 3, height, width, dtype=torch.uint8, device=self.device)
        for i in range(0, len(self), 512):
            pixels[i : i + 512] = transform(self._read(np.arange(i, min(i + 512, len(self)))))
        return pixels

    def _read(self, index: NDArray[np.int64]) -> Tensor:
        """The source images `index` [n], sent to the device: [n, 3, H, W]."""
        return sent_to(self.device, np.array(self.source[index])).permute(0, 3, 1, 2)

    def _resized(self, raw: Tensor) -> Tensor:
        """The images `raw` [n, 3, H, W] as [n, 3, S, S]."""
        if raw.device.type != "cpu":
            raw = resize.resized(raw, self.size)
        elif raw.shape[2:] != (self.size, self.size):
            raw = tvf.resize(raw, [self.size, self.size], InterpolationMode.BICUBIC, antialias=True)
        return raw.contiguous()

    def __len__(self) -> int:
        return len(self.source)

    def passes(self) -> list[Tensor]:
        """The indices [n] of passes of a fixed size that cover all images once."""
        return list(torch.arange(len(self), device=self.device).split(PASS))

    def batch(
        self, index: Tensor, augment: Augment = "none", flip: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """The images `index` [n] as [n, 3, S, S], augmented with the random `flip` [n] (bool) and `shift` [n, 2] in [-1, 1).

        If the images are not ``resident``, an `index` on the host avoids a synchronisation with the device.
        """
        if self.pixels is not None:
            pixels = self.pixels[index]
        elif self.raw is not None:
            pixels = self._resized(self.raw[index])
        else:
            pixels = self._resized(self._read(index.cpu().numpy()))
        if augment == "crop_flip" and shift is not None:
            pixels = translate(pixels, torch.round(shift * (self.size / 8)).long())
        if augment != "none" and flip is not None:
            pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        return pixels.to(self.dtype).mul_(self.scale).add_(self.offset)


def sent_to(device: torch.device, values: NDArray[Any] | Tensor) -> Tensor:
    """`values` of the host on `device`. A copy to a GPU uses pinned memory, so the host does not wait for it."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def translate(pixels: Tensor, offset: Tensor) -> Tensor:
    """Each image of `pixels` [n, 3, S, S] shifted by its `offset` [n, 2] in pixels; border pixels repeat.

    Equivalent to random cropping after padding by S/8 (4 px at 32 px), the usual CIFAR augmentation.
    """
    n, channels, size, _ = pixels.shape
    grid = torch.arange(size, device=pixels.device)
    row, col = ((grid + offset[:, axis, None]).clamp(0, size - 1) for axis in (0, 1))  # [n, S]
    pixels = pixels.gather(2, row[:, None, :, None].expand(n, channels, size, size))
    return pixels.gather(3, col[:, None, None, :].expand(n, channels, size, size))
