"""The images that clip_nano learns from, drawn once by several processes: every character in every face and colour.

What an image shows beside its character is known, so that captions can say it.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbench.pretraining.clip_characters import FACES, Alphabet
from fedbench.sources.glyph_renderer import ATLAS, SIZE, Floats, Range, Style, render, stream

ANY: Range = (0.0, 1.0)
LIGHT: tuple[Range, Range, Range] = (ANY, (0.0, 0.5), (0.7, 1.0))
DARK: tuple[Range, Range, Range] = (ANY, (0.0, 0.6), (0.05, 0.3))
HUES: dict[str, Range] = {"red": (0.97, 1.03), "yellow": (0.12, 0.18), "green": (0.27, 0.42), "blue": (0.55, 0.68)}
# What captions call the ink and the paper, and the ranges of their hue, saturation and value.
PALETTES: tuple[tuple[str, str, tuple[Range, Range, Range], tuple[Range, Range, Range]], ...] = (
    ("black", "light", (ANY, (0.0, 0.3), (0.0, 0.2)), LIGHT),
    ("white", "dark", (ANY, (0.0, 0.15), (0.85, 1.0)), DARK),
    *((hue, "light", (HUES[hue], (0.7, 1.0), (0.25, 0.6)), LIGHT) for hue in ("red", "green", "blue")),
    *((hue, "dark", (HUES[hue], (0.4, 1.0), (0.8, 1.0)), DARK) for hue in HUES),
)
TEXTURES = ("plain", "gradient")


@dataclass(frozen=True)
class Look:
    """A face and a palette: what is the same in all images of one drawing task."""

    face: int
    palette: int

    def style(self) -> Style:
        """How the renderer draws it. The slant is small, so that an upright face stays upright."""
        _, _, ink, paper = PALETTES[self.palette]
        return Style(
            f"pretraining {self.face} {self.palette}",
            FACES[self.face].font,
            ink,
            paper,
            stroke=FACES[self.face].stroke,
            texture=TEXTURES[self.palette % len(TEXTURES)],
            texture_strength=(0.0, 0.15),
            scale=(0.8, 1.15),
            rotation=0.25,
            warp=0.05,
            noise=0.04,
            wear=(0.0, 0.1),
        )

    @property
    def words(self) -> tuple[str, str, str, str]:
        """What captions may say: weight, slope, ink and paper."""
        face, (ink, paper, _, _) = FACES[self.face], PALETTES[self.palette]
        return face.weight, face.slope, ink, paper


LOOKS = tuple(Look(face, palette) for face in range(len(FACES)) for palette in range(len(PALETTES)))


@dataclass(frozen=True)
class Drawings:
    """`images` uint8 [N, SIZE, SIZE, 3] with the index of the character and of the look (in LOOKS) of each [N]."""

    images: NDArray[np.uint8]
    char: NDArray[np.int64]
    look: NDArray[np.int64]


def draw_look(look: int, masks: NDArray[np.uint8], each: int, seed: int) -> NDArray[np.uint8]:
    """`each` images of every mask [M, ATLAS, ATLAS] in one look: [M * each, SIZE, SIZE, 3]."""
    clean: Floats = masks.astype(np.float32) / np.float32(255)
    labels = np.repeat(np.arange(len(masks)), each)
    return render(clean, LOOKS[look].style(), labels, stream("clip_nano", seed, look))


def draw_all(alphabet: Alphabet, each: int, seed: int, pool: Executor) -> Drawings:
    """`each` images of every character in every look whose face has it; one look per task."""
    rows = [np.flatnonzero(alphabet.face == look.face) for look in LOOKS]
    tasks = [pool.submit(draw_look, i, alphabet.masks[part], each, seed) for i, part in enumerate(rows)]
    images = np.empty((each * sum(map(len, rows)), SIZE, SIZE, 3), dtype=np.uint8)
    start = 0
    for task in tasks:
        part = task.result()
        images[start : start + len(part)] = part
        start += len(part)
    char = np.concatenate([np.repeat(alphabet.char[part], each) for part in rows])
    look = np.repeat(np.arange(len(LOOKS)), [each * len(part) for part in rows])
    return Drawings(images, char, look)


def clean_pictures(alphabet: Alphabet, side: int) -> Floats:
    """The mask of each character in the first face that has it, in side x side pixels: [C, side squared]."""
    _, first = np.unique(alphabet.char, return_index=True)
    factor = ATLAS // side
    masks = alphabet.masks[first].astype(np.float32) / 255
    coarse = masks.reshape(-1, side, factor, side, factor).mean((2, 4)).reshape(len(first), -1)
    return np.asarray((coarse - coarse.mean(0)) / coarse.std(), dtype=np.float32)
