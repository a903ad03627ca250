"""Resizing on a GPU is integer arithmetic written as matrix products: its pixels are those of torch on a CPU, and of Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fedbench.vit.resize import integer_weights, resized

SIZES = [
    (32, 32, 224), (28, 28, 96), (64, 64, 32), (200, 300, 224), (224, 32, 32), (33, 31, 32), (7, 9, 16), (1, 5, 8), (32, 32, 32)
]  # fmt: skip


def noise(*shape: int) -> torch.Tensor:
    """Noise overshoots the range of a pixel more than any photograph."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_every_pixel_is_that_of_torch_on_a_cpu(height, width, size):
    images = noise(3, 3, height, width)
    expected = tvf.resize(images, [size, size], InterpolationMode.BICUBIC, antialias=True)
    pixels = resized(images, size)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (64, 48, 32)])
def test_pixels_are_near_those_of_pillow(height, width, size):
    """Pillow keeps other bits of its weights, so that after both steps single pixels differ by 1 or 2."""
    image = noise(3, height, width)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1).int()
    assert (resized(image[None], size)[0].int() - expected).abs().max() <= 2


def test_weights_of_two_pixels_made_one_by_hand():
    """The centre is at 1.0, the scale 2, so both pixels are at distance 1/4 of the widened kernel: a half each."""
    weights, precision = integer_weights(2, 1)
    assert weights.tolist() == [[2.0 ** (precision - 1)] * 2]
    assert 1 << 14 <= weights.max() < 1 << 15  # an int16, and no bit of it is wasted
