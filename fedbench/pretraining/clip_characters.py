"""What clip_nano learns from: characters and fonts of which the glyphs dataset has none, and the words of their names.

clip_nano is tested on names of characters that it never saw, so their words must occur in other names: GREEK SMALL LETTER
ALPHA WITH TONOS tells it something about GREEK SMALL LETTER ALPHA. It therefore sees other characters of the
benchmark's scripts, unlike nano. Left out are the benchmark's characters in both cases, their compatibility equivalents
(such as a mathematical bold alpha), and every character that looks like one of them in any font.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbench.sources.glyph_renderer import Floats, clean_masks, has_glyph, load_font
from fedbench.text.nano_tokenizer import words_of

CODES = (0x21, 0x1F100)
UNUSED = ("BRAILLE", "HEXAGRAM", "TETRAGRAM", "DOMINO", "SMALL CAPITAL")  # counts of dots, and doubles of capitals
MAX_CORRELATION = 0.9  # of two masks in the same face; from there on they look alike
RARE = 3  # a word of fewer names is spelled


@dataclass(frozen=True)
class Face:
    """A font, thickened by `stroke` pixels of its 96, and what captions call it."""

    font: str
    weight: str
    slope: str
    stroke: int = 0


FACES = (
    Face("DejaVuSans.ttf", "regular", "upright"),
    Face("DejaVuSans.ttf", "bold", "upright", 6),
    Face("DejaVuSans-Oblique.ttf", "regular", "slanted"),
    Face("DejaVuSans-BoldOblique.ttf", "bold", "slanted"),
    Face("DejaVuSansMono-Oblique.ttf", "regular", "slanted"),
    Face("DejaVuSansMono-BoldOblique.ttf", "bold", "slanted"),
    Face("STIXGeneral.ttf", "regular", "upright"),
    Face("STIXGeneralBol.ttf", "bold", "upright"),
    Face("STIXGeneralItalic.ttf", "regular", "slanted"),
    Face("STIXGeneralBolIta.ttf", "bold", "slanted"),
)


def character_named(name: str) -> str:
    """The character of a Unicode name in any case."""
    return unicodedata.lookup(name.upper())


@dataclass(frozen=True)
class Alphabet:
    """The characters of the pretraining and their clean masks.

    `chars` [C]; `masks` uint8 [M, ATLAS, ATLAS] with the index of the character [M] and of the face [M] of each.
    """

    chars: tuple[str, ...]
    masks: NDArray[np.uint8]
    char: NDArray[np.int64]
    face: NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        """The Unicode name of each character in lower case."""
        return [unicodedata.name(char).lower() for char in self.chars]

    @property
    def scripts(self) -> list[str]:
        """The first word of each name, which is the script of a letter."""
        return [name.split()[0] for name in self.names]

    def only(self, kept: NDArray[np.bool_]) -> Alphabet:
        """The characters where `kept` [C] holds."""
        rows, number = kept[self.char], np.cumsum(kept) - 1
        chars = tuple(char for char, keep in zip(self.chars, kept, strict=True) if keep)
        return Alphabet(chars, self.masks[rows], number[self.char[rows]], self.face[rows])

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        np.savez_compressed(path, chars=np.array(self.chars), masks=self.masks, char=self.char, face=self.face)

    @classmethod
    def load(cls, path: Path) -> Alphabet:
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(tuple(map(str, file["chars"])), file["masks"], file["char"], file["face"])


def candidates(benchmark: str) -> list[str]:
    """The named letters, numbers, punctuation and symbols of which no equivalent is in `benchmark`, in either case."""
    chars = [chr(code) for code in range(*CODES)]
    named = [c for c in chars if unicodedata.category(c)[0] in "LNPS" and unicodedata.name(c, "") != ""]
    useful = [c for c in named if not any(word in unicodedata.name(c) for word in UNUSED)]
    avoided = {form for char in benchmark for form in (char, char.upper(), char.lower())}
    return [c for c in useful if not avoided & {unicodedata.normalize("NFKC", c), c.upper(), c.lower()}]


def shapes(masks: Floats) -> Floats:
    """One centred unit vector for each mask [C, ATLAS squared]; their products are correlations."""
    flat = masks.reshape(len(masks), -1)
    centred = flat - flat.mean(1, keepdims=True)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True), dtype=np.float32)


def face_masks(index: int, chars: list[str], benchmark: str) -> tuple[list[int], Floats, NDArray[np.bool_]]:
    """The positions in `chars` of those that a face has, their masks, and which look like one of `benchmark` in it."""
    face = FACES[index]
    font = load_font(face.font)
    there = [position for position, char in enumerate(chars) if has_glyph(font, char)]
    masks = clean_masks([chars[position] for position in there], face.font, face.stroke)
    avoided = clean_masks([char for char in benchmark if has_glyph(font, char)], face.font, face.stroke)
    return there, masks, (shapes(masks) @ shapes(avoided).T).max(1) >= MAX_CORRELATION


def draw_alphabet(benchmark: str, pool: Executor) -> Alphabet:
    """All characters that a face has, without those that look like one of `benchmark` in any face; one face per task."""
    chars = candidates(benchmark)
    tasks = [pool.submit(face_masks, index, chars, benchmark) for index in range(len(FACES))]
    drawn = [task.result() for task in tasks]
    drawable = {position for there, _, _ in drawn for position in there}
    lookalikes = {there[i] for there, _, like in drawn for i in np.flatnonzero(like)}
    kept = sorted(drawable - lookalikes)
    number = {position: index for index, position in enumerate(kept)}
    masks, char, face = [], [], []
    for index, (there, clean, _) in enumerate(drawn):
        rows = [row for row, position in enumerate(there) if position in number]
        masks.append(np.rint(clean[rows] * 255).astype(np.uint8))
        char += [number[there[row]] for row in rows]
        face += [index] * len(rows)
    return Alphabet(tuple(chars[position] for position in kept), np.concatenate(masks), np.array(char), np.array(face))


def vocabulary(names: list[str], others: list[str]) -> list[str]:
    """The words that get a token of their own, sorted: those of at least RARE names, and `others`."""
    counts = Counter(word for name in names for word in set(words_of(name)))
    return sorted({word for word, count in counts.items() if count >= RARE} | set(others))
