"""Draws characters as small colour images in a given style, for a dataset and a backbone that need no download.

The fonts are those that Matplotlib ships. `clean_masks` gives the same bits under the same versions of Pillow and
Matplotlib, and `render` under the same version of NumPy. No function uses a global random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

VERSION = 1  # raise it whenever the images change; it is part of the name of a cache
SIZE = 32  # pixels of an image
ATLAS = 64  # pixels of a clean mask
GLYPH = 44  # the longer side of the character inside a clean mask; the rest is margin for strokes and warps
EM = 96  # characters are drawn at this font size before they are scaled to GLYPH
CHUNK = 512  # images drawn together; the random numbers depend on it, since a chunk's numbers are drawn at once

Floats = NDArray[np.float32]
Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How one domain draws its characters. A value in each range is drawn uniformly for each image."""

    name: str
    font: str  # a file of Matplotlib's fonts/ttf folder
    ink: tuple[Range, Range, Range]  # hue, saturation, value, each in 0..1
    paper: tuple[Range, Range, Range]
    stroke: int = 0  # thickens by this many pixels of EM
    hollow: bool = False  # only the outline, `stroke` pixels wide
    texture: str = "plain"  # of the paper: a name in TEXTURES
    texture_strength: Range = (0.0, 0.0)
    cells: int = SIZE  # pixels per side of the drawn character; fewer than SIZE look like a coarse screen
    scale: Range = (0.85, 1.1)
    shift: float = 0.12  # of half the image
    rotation: float = 0.15  # radians, either way
    slant: Range = (-0.1, 0.1)
    warp: float = 0.03  # of half the image
    noise: float = 0.03  # standard deviation, of full brightness
    wear: Range = (0.0, 0.0)  # share of the ink that is missing, in specks
    inverted: float = 0.0  # share of images with ink and paper exchanged


def stream(*name: int | str) -> np.random.Generator:
    """The random stream called `name`."""
    return np.random.default_rng(list("/".join(map(repr, name)).encode()))


def load_font(name: str, size: int = EM) -> ImageFont.FreeTypeFont:
    """A font by its file name."""
    import matplotlib  # slow to import, and a cached dataset needs no font

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # The basic layout engine is always available; another engine could change the drawing.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def has_glyph(font: ImageFont.FreeTypeFont, char: str) -> bool:
    """Whether `font` has `char`; a missing character is drawn as nothing or as a box."""
    mask, missing = font.getmask(char), font.getmask("\uffff")
    return mask.getbbox() is not None and (mask.size, bytes(mask)) != (missing.size, bytes(missing))


def clean_masks(chars: Sequence[str], font: str, stroke: int = 0, hollow: bool = False) -> Floats:
    """Every character, centred and scaled to the same longer side, as ink coverage in 0..1: float32 [C, ATLAS, ATLAS].

    Raises ValueError if the font lacks a character.
    """
    face = load_font(font)
    lacking = [f"U+{ord(char):04X}" for char in chars if not has_glyph(face, char)]
    if lacking:
        raise ValueError(f"{font} has no glyph for {', '.join(lacking)}")
    masks = np.zeros((len(chars), ATLAS, ATLAS), dtype=np.float32)
    for mask, char in zip(masks, chars, strict=True):
        canvas = Image.new("L", (4 * EM, 4 * EM))
        pen = ImageDraw.Draw(canvas)
        pen.text((2 * EM, 2 * EM), char, font=face, anchor="mm", fill=255, stroke_width=stroke)
        if hollow:
            pen.text((2 * EM, 2 * EM), char, font=face, anchor="mm", fill=0)
        left, top, right, bottom = canvas.getbbox()  # type: ignore[misc]  # a glyph has ink
        factor = GLYPH / max(right - left, bottom - top)
        width, height = (max(1, round(factor * side)) for side in (right - left, bottom - top))
        small = canvas.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.BOX)
        x, y = (ATLAS - width) // 2, (ATLAS - height) // 2
        mask[y : y + height, x : x + width] = np.asarray(small, dtype=np.float32) / 255
    return masks


def render(masks: Floats, style: Style, labels: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.uint8]:
    """One image of `masks[label]` for each label; uint8 [N, SIZE, SIZE, 3]."""
    images = np.empty((len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(labels), CHUNK):
        part = labels[start : start + CHUNK]
        images[start : start + CHUNK] = _render_chunk(masks, style, part, draw)
    return images


def _render_chunk(
    masks: Floats, style: Style, labels: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.uint8]:
    count = len(labels)
    ink = _sample(masks, labels, *_source(style, count, draw))
    if style.cells != SIZE:
        nearest = np.arange(SIZE) * style.cells // SIZE
        ink = ink[:, nearest][:, :, nearest]
    worn = _uniform(draw, style.wear, count)[:, None, None]
    ink = ink * (draw.random(ink.shape, dtype=np.float32) >= worn)
    front, back = (_rgb(*(_uniform(draw, part, count) for part in hsv)) for hsv in (style.ink, style.paper))
    swap = (draw.random(count) < style.inverted)[:, None]
    front, back = np.where(swap, back, front), np.where(swap, front, back)
    texture = TEXTURES[style.texture](count, draw) * _uniform(draw, style.texture_strength, count)[:, None, None]
    paper = back[:, None, None, :] + texture[..., None]
    image = paper + (front[:, None, None, :] - paper) * ink[..., None]
    image += style.noise * draw.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), dtype=np.uint8)


def _uniform(draw: np.random.Generator, bounds: Range, count: int) -> Floats:
    low, high = bounds
    return (low + (high - low) * draw.random(count, dtype=np.float32)).astype(np.float32)


def _source(style: Style, count: int, draw: np.random.Generator) -> tuple[Floats, Floats]:
    """The place of each pixel of `count` images in the clean mask: x and y [count, cells, cells], -1..1 inside the mask."""

    def drawn(low: float, high: float) -> Floats:
        return _uniform(draw, (low, high), count)[:, None, None]

    axis = ((np.arange(style.cells, dtype=np.float32) + 0.5) / style.cells * 2 - 1).astype(np.float32)
    x = axis[None, None, :] - drawn(-style.shift, style.shift)
    y = axis[None, :, None] - drawn(-style.shift, style.shift)
    angle = drawn(-style.rotation, style.rotation)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    x, y = x / drawn(*style.scale), y / drawn(*style.scale)  # two scales, so that the aspect ratio varies as well
    x = x + drawn(*style.slant) * y
    # A slow wave along the other axis bends strokes without breaking them.
    turns, phases = (drawn(1.0, 1.8), drawn(1.0, 1.8)), (drawn(0, math.tau), drawn(0, math.tau))
    bent_x = x + style.warp * np.sin(math.pi * turns[0] * y + phases[0])
    bent_y = y + style.warp * np.sin(math.pi * turns[1] * x + phases[1])
    return bent_x.astype(np.float32), bent_y.astype(np.float32)


def _sample(masks: Floats, labels: NDArray[np.int64], x: Floats, y: Floats) -> Floats:
    """Bilinear look-up of `masks[labels]` at x, y in -1..1; outside a mask there is no ink."""
    # The border of a mask is empty, so clipping equals padding.
    column, row = (np.clip((v + 1) * (ATLAS / 2) - 0.5, 0, ATLAS - 1.001).astype(np.float32) for v in (x, y))
    left, top = column.astype(np.int64), row.astype(np.int64)
    right_share, bottom_share = column - left, row - top
    flat = masks.reshape(-1)
    corner = labels[:, None, None] * (ATLAS * ATLAS) + top * ATLAS + left
    upper = flat[corner] * (1 - right_share) + flat[corner + 1] * right_share
    lower = flat[corner + ATLAS] * (1 - right_share) + flat[corner + ATLAS + 1] * right_share
    return np.asarray(upper * (1 - bottom_share) + lower * bottom_share, dtype=np.float32)


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """HSV [N] each, to RGB [N, 3]; the hue wraps around."""
    sector = (hue[:, None] * 6 + np.array([5, 3, 1], dtype=np.float32)) % 6
    dip = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.asarray(value[:, None] * (1 - saturation[:, None] * dip), dtype=np.float32)


def _plane(count: int, draw: np.random.Generator) -> Floats:
    """A coordinate along a random direction: [N, SIZE, SIZE], about -1..1."""
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle = _uniform(draw, (0, math.tau), count)[:, None, None]
    return np.asarray(np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None], dtype=np.float32)


def _plain(count: int, draw: np.random.Generator) -> Floats:
    return np.zeros((count, SIZE, SIZE), dtype=np.float32)


def _gradient(count: int, draw: np.random.Generator) -> Floats:
    return _plane(count, draw)


def _stripes(count: int, draw: np.random.Generator) -> Floats:
    pitch, phase = (_uniform(draw, bounds, count)[:, None, None] for bounds in ((8, 16), (0, math.tau)))
    return np.asarray(np.sign(np.sin(pitch * _plane(count, draw) + phase)), dtype=np.float32)


def _blotches(count: int, draw: np.random.Generator) -> Floats:
    """Coarse noise, smoothed: paper with stains."""
    coarse = draw.standard_normal((count, 6, 6), dtype=np.float32)
    place = np.linspace(0, 4.999, SIZE, dtype=np.float32)
    left = place.astype(np.int64)
    share = place - left
    rows = coarse[:, left] * (1 - share)[None, :, None] + coarse[:, left + 1] * share[None, :, None]
    return np.asarray(rows[:, :, left] * (1 - share) + rows[:, :, left + 1] * share, dtype=np.float32)


def _scanlines(count: int, draw: np.random.Generator) -> Floats:
    """Every second row darker, as on an old screen."""
    first = draw.integers(0, 2, count)[:, None, None]
    row = np.arange(SIZE)[None, :, None]
    return np.broadcast_to(np.where((row + first) % 2, 1.0, -1.0), (count, SIZE, SIZE)).astype(np.float32)


TEXTURES = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "blotches": _blotches,
    "scanlines": _scanlines,
}
