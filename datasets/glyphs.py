"""Glyphs: 100 characters in 6 drawing styles, rendered when they are first used, so that nothing has to be downloaded.

glyphs.npz holds the shapes of the characters, so that every machine draws the same images whatever its versions of Pillow and
Matplotlib. `python datasets/glyphs.py` makes it again from the fonts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench.data import Dataset as Base
from fedbench.data import Extent, Facts, Samples, option
from fedbench.sources import cached_arrays, glyph_renderer

# Chosen to look different at one size: no capital together with its small form, no letter that two scripts share.
GREEK = "ΓΔΘΞΣΩαβεζηιλμνξπςτψ"
CYRILLIC = "БЂЊЋДЙФШЯжклцчщъыьэюђљѣҖҘӘ"
ARMENIAN = "ԳԶԷԸԹԻԽԿՀՂՃՄՆՇՉՊՌՎՖիխկմնչջվփֆև"
GEORGIAN = "აბდეზთიკლმორსტფქშცჭჯჰჱჲჴ"
CHARACTERS = GREEK + CYRILLIC + ARMENIAN + GEORGIAN
SHAPES = Path(__file__).with_name("glyphs.npz")

ANY = (0.0, 1.0)
# Domains differ in font, weight, slant, outline, paper, polarity, noise and warp at the same time, as real sources do.
STYLES = (
    glyph_renderer.Style(
        "book",
        "DejaVuSerif.ttf",
        ink=(ANY, (0.0, 0.3), (0.0, 0.25)),
        paper=((0.08, 0.16), (0.05, 0.3), (0.75, 1.0)),
        texture="blotches",
        texture_strength=(0.02, 0.07),
        noise=0.05,
    ),
    glyph_renderer.Style(
        "poster",
        "DejaVuSans-Bold.ttf",
        ink=(ANY, (0.5, 1.0), (0.75, 1.0)),
        paper=(ANY, (0.5, 1.0), (0.15, 0.45)),
        stroke=2,
        texture="stripes",
        texture_strength=(0.03, 0.1),
        scale=(0.8, 1.2),
        inverted=0.5,
    ),
    glyph_renderer.Style(
        "neon",
        "DejaVuSansMono.ttf",
        ink=(ANY, (0.2, 0.9), (0.85, 1.0)),
        paper=((0.55, 0.85), (0.3, 0.9), (0.0, 0.3)),
        stroke=4,
        hollow=True,
        texture="gradient",
        texture_strength=(0.0, 0.15),
        warp=0.05,
    ),
    glyph_renderer.Style(
        "chalk",
        "DejaVuSerif-Italic.ttf",
        ink=(ANY, (0.0, 0.25), (0.75, 1.0)),
        paper=((0.3, 0.5), (0.1, 0.5), (0.15, 0.4)),
        stroke=2,
        texture="blotches",
        texture_strength=(0.03, 0.08),
        rotation=0.3,
        slant=(-0.1, 0.3),
        noise=0.08,
        wear=(0.1, 0.4),
    ),
    glyph_renderer.Style(
        "terminal",
        "DejaVuSansMono-Bold.ttf",
        ink=((0.1, 0.5), (0.4, 1.0), (0.6, 1.0)),
        paper=((0.1, 0.5), (0.3, 1.0), (0.0, 0.2)),
        texture="scanlines",
        texture_strength=(0.03, 0.12),
        cells=16,
        scale=(0.95, 1.2),
        rotation=0.06,
        warp=0.0,
        inverted=0.3,
    ),
    glyph_renderer.Style(
        "banner",
        "DejaVuSerif-BoldItalic.ttf",
        ink=(ANY, (0.3, 1.0), (0.0, 0.45)),
        paper=(ANY, (0.2, 0.8), (0.7, 1.0)),
        stroke=6,
        hollow=True,
        texture="gradient",
        texture_strength=(0.0, 0.2),
        rotation=0.25,
        slant=(-0.2, 0.4),
        warp=0.09,
    ),
)


@dataclass(frozen=True)
class Dataset(Base):
    """100 characters of four scripts, each drawn in 6 styles (the domains) from the fonts that Matplotlib ships."""

    facts: ClassVar[Facts | None] = Facts(
        0, len(CHARACTERS), domains=len(STYLES), page="drawn here, nothing is downloaded"
    )
    citation: ClassVar[str] = "ours; DejaVu fonts, https://dejavu-fonts.github.io"
    licence: ClassVar[str] = "Apache-2.0; the fonts are free (Bitstream Vera licence)"
    train_per_class: int = option(20, "training images per character and style")
    test_per_class: int = option(10, "test images per character and style")
    render_seed: int = option(0, "random seed of the images")

    def load(self, root: Path) -> Samples:
        """Map the images. The first call draws them into a folder below `root`."""

        def build(aside: Path) -> None:
            np.save(aside / "images.npy", self.draw())

        return self._samples(cached_arrays(root / "cache" / f"glyphs-{self.fingerprint()}", build)["images"])

    def _samples(self, images: NDArray[np.uint8]) -> Samples:
        """The images [N, H, W, 3] in the order of `draw`, with their labels."""
        each = self.train_per_class + self.test_per_class
        domain, label, number = (
            index.reshape(-1).astype(np.int64) for index in np.indices((len(STYLES), len(CHARACTERS), each))
        )
        return Samples(
            images=images,
            labels=label,
            is_test=number >= self.train_per_class,
            domain=domain,
            class_names=tuple(unicodedata.name(char).lower() for char in CHARACTERS),
            domain_names=tuple(style.name for style in STYLES),
        )

    def extent(self, root: Path) -> Extent:
        """The size from the options. Nothing is drawn."""
        count = len(STYLES) * len(CHARACTERS) * (self.train_per_class + self.test_per_class)
        return Extent.of(self._samples(np.empty((count, 0, 0, 3), dtype=np.uint8)))

    def draw(self) -> NDArray[np.uint8]:
        """All images [N, SIZE, SIZE, 3], ordered by style, character and number."""
        each = self.train_per_class + self.test_per_class
        parts = []
        for style, masks in zip(STYLES, shapes(), strict=True):
            # Training and test images are drawn from one stream, so they are alike and never equal.
            labels = np.repeat(np.arange(len(CHARACTERS)), each)
            draw = glyph_renderer.stream("glyphs", self.render_seed, style.name)
            parts.append(glyph_renderer.render(masks, style, labels, draw))
        return np.concatenate(parts)

    def fingerprint(self) -> str:
        """8 hex digits that change with everything that affects a pixel."""
        parts = (
            self,
            STYLES,
            CHARACTERS,
            glyph_renderer.VERSION,
            np.__version__,
            hashlib.sha256(SHAPES.read_bytes()).hexdigest(),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def shapes() -> NDArray[np.float32]:
    """The ink coverage of every character in every style, in 0..1: [styles, characters, ATLAS, ATLAS]."""
    with np.load(SHAPES) as stored:
        return np.asarray(stored["masks"].astype(np.float32) / 255)


def shapes_from_fonts() -> NDArray[np.float32]:
    """The same, drawn with the installed versions of Pillow and Matplotlib.

    Raises ValueError if a font lacks a character.
    """
    return np.stack(
        [glyph_renderer.clean_masks(CHARACTERS, style.font, style.stroke, style.hollow) for style in STYLES]
    )


if __name__ == "__main__":
    np.savez_compressed(SHAPES, masks=np.rint(255 * shapes_from_fonts()).astype(np.uint8))
