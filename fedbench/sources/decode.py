"""Decodes the bytes of an image file to a square of pixels. All datasets use it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedbench.base.files import open_file
from fedbench.data import DataError

VERSION = f"3 {PIL.__version__}"  # raise the number whenever the pixels that `square` returns change
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LEAST_16_BIT = 1 << 12  # a 16-bit image whose largest value is smaller holds 12 bits or fewer, and would come out black


def is_image(name: str) -> bool:
    """Whether the suffix of a file name is that of an image."""
    return name.lower().endswith(SUFFIXES)


def square(source: Path | bytes, size: int, name: str = "") -> NDArray[np.uint8]:
    """The image in a file or in its bytes, uint8 [size, size, 3]: short side resized (bicubic), centre cropped.

    The orientation in EXIF data is applied. Grey, palette and CMYK images become RGB, transparent images get a white
    background, 16-bit values are divided by 256, and floating-point values in 0..1 are multiplied by 255. A JPEG is decoded
    at a half, a quarter or an eighth of its size if that leaves `size` * 2 pixels, as Pillow's thumbnails are.

    Raises DataError, which names the file, for a damaged image, for one whose values have no known range, and for one of more
    pixels than Pillow opens (13,377 squared), which is an attack or an accident.
    """
    try:
        content = io.BytesIO(source) if isinstance(source, bytes) else open_file(source)
        with content, Image.open(content) as file:
            is_deep = ";16" in repr(getattr(file, "tile", ""))
            file.draft(None, (2 * size, 2 * size))
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode == "F":
                image = _from_floats(np.asarray(image))
            elif image.mode.startswith("I"):  # Pillow's conversion would clip values at 255
                image = _from_integers(np.asarray(image))
            elif is_deep:  # colour, of which Pillow keeps the upper 8 of 16 bits
                _check_depth(256 * int(np.asarray(image.convert("RGB")).max()))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # decoders raise any type of error for a damaged file
        raise DataError(
            f"{name or source!s:.200}: expected an image, which cannot be read ({type(error).__name__}: {error})"
        ) from error


def _from_floats(values: NDArray[Any]) -> Image.Image:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"floating-point values {values.min():g}..{values.max():g}, expected 0..1; convert the image to 8 bits"
        )
    return Image.fromarray(np.rint(255 * values).astype(np.uint8))


def _from_integers(values: NDArray[Any]) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values {values.min()}..{values.max()}, expected 0..65535; convert the image to 8 bits")
    _check_depth(int(values.max()))
    return Image.fromarray((values // 256).astype(np.uint8))


def _check_depth(largest: int) -> None:
    if 0 < largest < LEAST_16_BIT:
        raise ValueError(
            f"a 16-bit image whose largest value is {largest:,} would be nearly black: it holds fewer than 16 bits; "
            "convert it to 8 bits"
        )
