"""What nano learns from: characters, fonts and styles of which the glyphs dataset has none.

Characters of the scripts that glyphs draws from are left out, and so is whatever looks like one of them.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.sources.glyph_renderer import ATLAS, Floats, Style, clean_masks, has_glyph, load_font, render
from fedbench.vit.nano import MEAN, STD

# Greek, Cyrillic, Armenian and Georgian are the benchmark's. The rest is what the fonts have most of.
BENCHMARK_BLOCKS = ((0x0370, 0x0400), (0x0400, 0x0530), (0x0530, 0x0590), (0x10A0, 0x1100))
BLOCKS = (
    (0x0021, 0x0250),  # Latin, digits and signs
    (0x0250, 0x02B0),  # phonetic letters
    (0x05D0, 0x05EB),  # Hebrew
    (0x0E81, 0x0EDE),  # Lao
    (0x1401, 0x1677),  # Canadian syllabics
    (0x1E00, 0x1F00),  # Latin with more marks
    (0x2100, 0x2150),  # letter-like signs
    (0x2190, 0x2400),  # arrows, mathematics, technical signs
    (0x2500, 0x2580),  # box drawing
    (0x25A0, 0x2800),  # shapes, signs, dingbats
    (0x2900, 0x2C00),  # more arrows and mathematics
    (0x2C60, 0x2C80),  # rare Latin
    (0xA4D0, 0xA500),  # Lisu
    (0xA720, 0xA800),  # rare Latin
)
MAX_CORRELATION = 0.93  # of two blurred masks; from there on they count as one character
COARSE = 16  # pixels per side of a coarse clean picture

STYLES = (
    Style(
        "ink",
        "DejaVuSans.ttf",
        ink=((0.0, 1.0), (0.0, 0.6), (0.0, 0.4)),
        paper=((0.0, 1.0), (0.0, 0.3), (0.75, 1.0)),
    ),
    Style(
        "slate",
        "DejaVuSans-Oblique.ttf",
        ink=((0.0, 1.0), (0.0, 0.4), (0.75, 1.0)),
        paper=((0.0, 1.0), (0.0, 0.6), (0.05, 0.35)),
        rotation=0.25,
        slant=(-0.3, 0.3),
        noise=0.05,
    ),
    Style(
        "sign",
        "DejaVuSans-BoldOblique.ttf",
        ink=((0.0, 1.0), (0.2, 0.8), (0.0, 0.5)),
        paper=((0.0, 1.0), (0.2, 0.8), (0.65, 1.0)),
        texture="gradient",
        texture_strength=(0.0, 0.15),
        slant=(-0.3, 0.3),
        warp=0.06,
        inverted=0.5,
    ),
)


def coarse_masks(masks: Floats) -> Floats:
    """Clean masks [C, ATLAS, ATLAS] averaged to [C, COARSE, COARSE]."""
    factor = ATLAS // COARSE
    return np.asarray(masks.reshape(-1, COARSE, factor, COARSE, factor).mean((2, 4)), dtype=np.float32)


def blurred_vectors(chars: list[str]) -> Floats:
    """One blurred unit vector per character [C, COARSE squared]; their products are correlations."""
    padded = np.pad(coarse_masks(clean_masks(chars, STYLES[0].font)), ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    flat = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]).reshape(len(chars), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True), dtype=np.float32)


def characters() -> list[str]:
    """The pretraining classes: visible in every font used, unlike each other and unlike every benchmark script."""
    fonts = [load_font(style.font) for style in STYLES]

    def drawable(blocks: tuple[tuple[int, int], ...]) -> list[str]:
        chars = [chr(code) for low, high in blocks for code in range(low, high)]
        known = [char for char in chars if unicodedata.category(char)[0] in "LNPS"]
        return [char for char in known if all(has_glyph(font, char) for font in fonts)]

    avoided, candidates = drawable(BENCHMARK_BLOCKS), drawable(BLOCKS)
    similar = blurred_vectors(candidates) @ blurred_vectors(avoided + candidates).T
    kept: list[int] = []
    for index in range(len(candidates)):
        others = [*range(len(avoided)), *(len(avoided) + other for other in kept)]
        if similar[index, others].max() < MAX_CORRELATION:
            kept.append(index)
    return [candidates[index] for index in kept]


def blocks_of(chars: list[str]) -> NDArray[np.int64]:
    """The index in BLOCKS of each character [C]."""
    return np.array([next(i for i, (low, high) in enumerate(BLOCKS) if low <= ord(char) < high) for char in chars])


def style_masks(chars: list[str]) -> list[Floats]:
    """The clean masks of all characters [C, ATLAS, ATLAS], once per style."""
    return [clean_masks(chars, style.font, style.stroke, style.hollow) for style in STYLES]


def coarse_pictures(masks: Floats) -> Tensor:
    """The coarse clean picture of every class, centred and scaled, as a target for regression [C, COARSE squared]."""
    coarse = torch.from_numpy(coarse_masks(masks).reshape(len(masks), -1))
    return (coarse - coarse.mean(0)) / coarse.std()


def draw_images(
    masks: list[Floats], size: int, styles: int, draw: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """`size` fresh images [N, 32, 32, 3] in equal parts of the first `styles` styles, with class [N] and style [N]."""
    labels = draw.integers(0, len(masks[0]), size)
    parts = np.array_split(labels, styles)
    images = [render(masks[index], STYLES[index], part, draw) for index, part in enumerate(parts)]
    return np.concatenate(images), labels, np.repeat(np.arange(styles), [len(part) for part in parts])


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to what the model reads, float32 [N, 3, H, W]."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
