"""Image files are decoded to the pixels that a viewer shows, or refused. None becomes black silently."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import DATASETS
from PIL import Image, ImageOps
from test_imagefolder import image_tree

from fedbench.cli.data import main
from fedbench.data import DataError
from fedbench.sources import decode

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def tiff(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def png(values: np.ndarray[Any, Any]) -> bytes:
    """A PNG of 16 bits: grey [H, W] or colour [H, W, 3]; Pillow itself writes no colour of 16 bits."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "says"), [(13_378, "DecompressionBombError.*178970884 pixels"), (13_377, "OSError")])
def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(width: int, says: str) -> None:
    claim = struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)  # of a smaller image, only that its pixels are missing
    header = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + claim + struct.pack(">I", zlib.crc32(b"IHDR" + claim))
    )
    with pytest.raises(DataError, match=says):
        decode.square(header + struct.pack(">I", 4) + b"IDAT" + bytes(8), 16, "huge.png")


@pytest.mark.parametrize(
    ("width", "height", "eighths"),
    [
        (64, 64, 4),
        (63, 64, 8),
        (64, 63, 8),
        (128, 64, 4),
        (64, 128, 4),
        (128, 128, 2),
        (127, 300, 4),
        (256, 300, 1),
        (600, 600, 1),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_leaves_twice_the_pixels(
    width: int, height: int, eighths: int
) -> None:
    """Squares of 16 pixels need 32: half the size of 64 x 64, a quarter of 128 x 128, and an eighth at least."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=95)
    with Image.open(file) as image:
        image.draft("RGB", (width * eighths // 8, height * eighths // 8))
        assert image.size == (-(-width * eighths // 8), -(-height * eighths // 8))
        expected = ImageOps.fit(image, (16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(decode.square(file.getvalue(), 16), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_in_exif_is_applied(orientation: int, kind: str) -> None:
    corners = Image.new("L", (40, 40), 0)
    corners.paste(255, (0, 0, 20, 20))  # the upper left quarter is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    corners.save(file, kind, exif=exif)
    image = decode.square(file.getvalue(), 2)[..., 0] > 127
    # EXIF 2.3, table of orientation: where the stored upper left corner belongs
    row, column = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    expected = np.zeros((2, 2), dtype=bool)
    expected[row, column] = True
    assert (image == expected).all()


def test_a_portrait_photograph_stored_sideways_keeps_its_middle() -> None:
    stored = np.zeros((20, 60), np.uint8)
    stored[:, 20:40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    assert (decode.square(file.getvalue(), 10) > 230).all()


def test_floats_in_0_to_1_are_scaled() -> None:
    image = decode.square(tiff(RAMP.astype(np.float32)), 8)
    assert np.abs(image[..., 0] - 255 * RAMP).max() <= 0.5


def test_16_bit_values_are_scaled() -> None:
    deep = np.rint(65535 * RAMP).astype(np.uint16)
    assert (decode.square(png(deep), 8)[..., 0] == deep // 256).all()
    assert (decode.square(tiff(deep.astype(np.int32)), 8)[..., 0] == deep // 256).all()
    colour = np.stack([deep, deep[::-1], deep.T], axis=-1)
    assert (decode.square(png(colour), 8) == colour // 256).all()
    assert not decode.square(png(np.zeros((8, 8), np.uint16)), 8).any(), "all black is black"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (png(np.rint(4095 * RAMP).astype(np.uint16)), r"a 16-bit image whose largest value is 4,095 would be nearly"),
        (
            png(np.rint(255 * RAMP).astype(np.uint16)),
            r"a 16-bit image whose largest value is 255 would be nearly black",
        ),
        (
            png(np.repeat(np.rint(4095 * RAMP)[..., None], 3, 2).astype(np.uint16)),
            r"a 16-bit image .*would be nearly black",
        ),
        (
            tiff(np.rint(255 * RAMP).astype(np.int32)),
            r"a 16-bit image whose largest value is 255 would be nearly black",
        ),
        (tiff((1 << 20) * np.arange(64, dtype=np.int32).reshape(8, 8)), r"values 0..66060288, expected 0..65535"),
        (tiff(np.arange(64, dtype=np.int32).reshape(8, 8) - 9), r"values -9..54, expected 0..65535"),
        (tiff(255 * RAMP.astype(np.float32)), r"floating-point values 0..255, expected 0..1"),
        (tiff(RAMP.astype(np.float32) - 0.5), r"floating-point values -0.5..0.5, expected 0..1"),
        (tiff(np.full((8, 8), np.nan, np.float32)), r"floating-point values nan..nan"),
    ],
)
def test_values_of_an_unknown_range_are_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"x\.tif: expected an image, which cannot be read \(ValueError: {problem}"):
        decode.square(content, 8, "x.tif")
    folder = image_tree(tmp_path / "mine")
    (folder / "cat" / "0.png").write_bytes(content)
    with pytest.raises(DataError, match=r"cat/0\.png: expected an image"):
        DATASETS["imagefolder"](path=folder, image_size=8).load(tmp_path)


def test_a_named_pipe_among_the_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_tree(tmp_path / "mine")
    os.mkfifo(folder / "cat" / "9.png")
    assert main(["prepare", "imagefolder", "--root", str(tmp_path / "root"), "--set", f"path={folder}"]) == 1
    assert "cat/9.png cannot be read (expected a file, found a named pipe)" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"9\.png: expected an image, which cannot be read .*found a named pipe"):
        decode.square(folder / "cat" / "9.png", 8)
