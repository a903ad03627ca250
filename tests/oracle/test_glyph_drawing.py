"""The images of `glyphs` are recomputed with scipy and the standard library: place, colours, texture and noise of every pixel.

The order of the random numbers is part of the recipe: with another order the benchmark would have other images.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.interpolate import RegularGridInterpolator

from fedbench.plan.plugins import plugins
from fedbench.sources import glyph_renderer
from fedbench.sources.glyph_renderer import Style, clean_masks, load_font, render

SIDE = 32
PIXEL = (np.arange(SIDE) + 0.5) / 16 - 1  # centres of pixels, -1..1
FULL = Style(
    "full",
    "DejaVuSans.ttf",
    ink=((0.0, 1.0), (0.2, 0.9), (0.5, 1.0)),
    paper=((0.55, 0.85), (0.3, 0.8), (0.0, 0.4)),
    texture_strength=(0.05, 0.3),
    scale=(0.8, 1.3),
    shift=0.3,
    rotation=0.7,
    slant=(-0.4, 0.6),
    warp=0.08,
    noise=0.04,
    wear=(0.1, 0.4),
    inverted=0.5,
)
WAYS = {
    "gradient": replace(FULL, texture="gradient"),
    "stripes": replace(FULL, texture="stripes"),
    "blotches": replace(FULL, texture="blotches"),
    "scanlines": replace(FULL, texture="scanlines"),
    "plain and coarse": replace(FULL, texture="plain", cells=16),
}


class Drawn:
    """Uniform numbers of a stream, one for each image, in ranges."""

    def __init__(self, stream: np.random.Generator, count: int) -> None:
        self.stream, self.count = stream, count

    def __call__(self, low: float, high: float) -> NDArray[np.float64]:
        return low + (high - low) * self.stream.random(self.count, dtype=np.float32).astype(float)


def ink_of(mask: NDArray[np.float32], side: int, place: dict[str, float], warp: float) -> NDArray[np.float64]:
    """The ink [side, side] of one image: each pixel's place is shifted, turned, scaled, slanted and bent, then looked up."""
    centre = (np.arange(64) + 0.5) / 32 - 1
    look_up = RegularGridInterpolator((centre, centre), mask.astype(float), bounds_error=False, fill_value=0.0)
    cos, sin = math.cos(place["angle"]), math.sin(place["angle"])
    ink = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            x, y = (2 * j + 1) / side - 1 - place["right"], (2 * i + 1) / side - 1 - place["down"]
            x, y = (cos * x + sin * y) / place["width"], (cos * y - sin * x) / place["height"]
            x += place["slant"] * y
            wave_x = warp * math.sin(math.pi * place["turns_y"] * y + place["phase_y"])
            wave_y = warp * math.sin(math.pi * place["turns_x"] * x + place["phase_x"])
            ink[i, j] = look_up((y + wave_y, x + wave_x))
    return ink


def places(style: Style, drawn: Drawn) -> dict[str, NDArray[np.float64]]:
    """Where each image's character lies, in the order of the recipe."""
    ranges: dict[str, tuple[float, float]] = {
        "right": (-style.shift, style.shift),
        "down": (-style.shift, style.shift),
        "angle": (-style.rotation, style.rotation),
        "width": style.scale,
        "height": style.scale,
        "slant": style.slant,
        "turns_y": (1.0, 1.8),
        "turns_x": (1.0, 1.8),
        "phase_y": (0.0, math.tau),
        "phase_x": (0.0, math.tau),
    }
    return {name: drawn(*bounds) for name, bounds in ranges.items()}


def texture_of(name: str, drawn: Drawn) -> NDArray[np.float64]:
    """The texture [N, side, side] of the paper, -1..1 (blotches: about so)."""
    axis, count = np.linspace(-1, 1, SIDE), drawn.count
    images = []
    if name == "scanlines":
        for first in drawn.stream.integers(0, 2, count):
            images.append(np.outer([1.0 if (row + first) % 2 else -1.0 for row in range(SIDE)], np.ones(SIDE)))
    elif name == "blotches":
        for stains in drawn.stream.standard_normal((count, 6, 6), dtype=np.float32):
            at = np.linspace(0, 4.999, SIDE)
            smooth = RegularGridInterpolator((np.arange(6), np.arange(6)), stains.astype(float))
            images.append(smooth(np.stack(np.meshgrid(at, at, indexing="ij"), -1)))
    elif name in ("gradient", "stripes"):
        pitch, phase = (drawn(8, 16), drawn(0, math.tau)) if name == "stripes" else (None, None)
        for n, angle in enumerate(drawn(0, math.tau)):
            plane = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
            images.append(plane if pitch is None or phase is None else np.sign(np.sin(pitch[n] * plane + phase[n])))
    else:
        images = [np.zeros((SIDE, SIDE))] * count
    return np.stack(images)


def colours(ranges: Any, drawn: Drawn) -> NDArray[np.float64]:
    """RGB [N, 3] of hue, saturation and value drawn in turn."""
    return np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(*(drawn(*bounds) for bounds in ranges), strict=True)])


@pytest.mark.parametrize("way", WAYS)
def test_every_pixel_follows_the_recipe(way: str) -> None:
    style, labels = WAYS[way], np.array([1, 0, 1, 2])
    masks = clean_masks("ΓЖю", style.font)
    images = render(masks, style, labels, np.random.default_rng(7))
    stream = np.random.default_rng(7)
    drawn = Drawn(stream, len(labels))
    place = places(style, drawn)
    ink = np.stack(
        [
            ink_of(masks[label], style.cells, {name: float(values[n]) for name, values in place.items()}, style.warp)
            for n, label in enumerate(labels)
        ]
    )
    ink = np.repeat(np.repeat(ink, SIDE // style.cells, 1), SIDE // style.cells, 2)
    worn = drawn(*style.wear)
    ink *= stream.random(ink.shape, dtype=np.float32) >= worn[:, None, None]
    front, back = colours(style.ink, drawn), colours(style.paper, drawn)
    swapped = stream.random(len(labels)) < style.inverted
    assert 0 < swapped.sum() < len(labels)
    front[swapped], back[swapped] = back[swapped], front[swapped].copy()
    texture = texture_of(style.texture, drawn)
    strength = drawn(*style.texture_strength)
    paper = back[:, None, None, :] + (strength[:, None, None] * texture)[..., None]
    expected = ink[..., None] * front[:, None, None, :] + (1 - ink[..., None]) * paper
    expected += style.noise * stream.standard_normal(expected.shape, dtype=np.float32)
    expected = 255 * expected.clip(0, 1)
    assert images.shape == (4, SIDE, SIDE, 3)
    wrong = np.abs(images - expected) > 0.51  # a rounded number
    assert wrong.mean() < 0.002  # a stripe's edge or a speck may fall to the other side in float32
    assert ink.max() > 0.9


def test_a_chunk_of_images_continues_the_stream() -> None:
    masks, labels = clean_masks("Γ", FULL.font), np.zeros(515, dtype=np.int64)
    style = replace(FULL, texture="plain")
    images = render(masks, style, labels, np.random.default_rng(3))
    stream = np.random.default_rng(3)
    first, rest = render(masks, style, labels[:512], stream), render(masks, style, labels[512:], stream)
    assert np.array_equal(images, np.concatenate([first, rest]))


@pytest.mark.parametrize(("stroke", "hollow"), [(0, False), (4, False), (4, True)])
def test_a_clean_mask_is_the_character_scaled_to_44_pixels_in_the_middle(stroke: int, hollow: bool) -> None:
    for mask, char in zip(clean_masks("Γж-", "DejaVuSans.ttf", stroke, hollow), "Γж-", strict=True):
        canvas = Image.new("L", (384, 384))
        pen = ImageDraw.Draw(canvas)
        font = load_font("DejaVuSans.ttf", 96)
        pen.text((192, 192), char, font=font, anchor="mm", fill=255, stroke_width=stroke)
        if hollow:
            pen.text((192, 192), char, font=font, anchor="mm", fill=0)
        drawn = np.asarray(canvas, dtype=float) / 255
        rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
        high, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        high, wide = round(high * 44 / max(high, wide)), round(wide * 44 / max(high, wide))
        inside = mask[(64 - high) // 2 :, (64 - wide) // 2 :][:high, :wide]
        assert np.count_nonzero(mask) == np.count_nonzero(inside)
        assert max(high, wide) == 44
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        cut = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.mean() == pytest.approx(cut.mean(), abs=0.02)  # the share of ink stays


def test_the_recipe_of_the_images_is_the_published_one() -> None:
    """Another style, character or order of drawing is another benchmark: raise VERSION, so that caches are drawn again."""
    module = sys.modules[type(plugins().make("dataset", {"name": "glyphs"})).__module__]
    recipe = repr((module.STYLES, module.CHARACTERS, glyph_renderer.VERSION))
    assert hashlib.sha256(recipe.encode()).hexdigest()[:16] == "c0c249875daec286"
