"""From the bytes of an image file to a square of pixels: the one way in which images of any source are decoded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedbench.data import DataError

VERSION = f"2 {PIL.__version__}"  # raise the number whenever `square` gives other pixels
MOST_PIXELS = 1 << 28  # a larger image (16,384 pixels squared) is taken for an attack or an accident


def square(source: Path | bytes, size: int, name: str = "") -> NDArray[np.uint8]:
    """The image in a file or in its bytes, uint8 [size, size, 3]: short side resized (bicubic), the middle cut out.

    Grey, palette, CMYK and 16-bit images become RGB, transparent ones get a white ground. A JPEG is decoded at a half, a
    quarter or an eighth where twice `size` is left, as Pillow's own thumbnails are. Raises DataError, which tells `name`.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels")
            file.draft(None, (2 * size, 2 * size))
            file.load()
            image: Image.Image = file
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 256).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # decoders raise what they like on a damaged file, and the file is named
        raise DataError(
            f"{name or source!s:.200}: expected an image, which cannot be read ({type(error).__name__}: {error})"
        ) from error
