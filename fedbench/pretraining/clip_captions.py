"""Captions for clip_nano: the character's name, often with words before it and with what else the image shows.

A caption is true of an image if they show the same character and all else that the caption says holds of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.pretraining.clip_images import LOOKS
from fedbench.text.nano_tokenizer import END, PADDING, START, tokenize

OPENINGS = ("a picture of", "the character", "a drawing of the", "this is a", "an image of one", "a photo of a")
OPENING_SHARE = 0.4  # of the captions
SAID_SHARE = 0.25  # of the captions, for each of weight, slope, ink and paper
ASPECTS = 4
WORDS = tuple(sorted({word for look in LOOKS for word in look.words} | set(" ".join(OPENINGS).split()) | {"on"}))


def token_table(texts: list[str]) -> Tensor:
    """The tokens of each text, padded to the longest: [n, L]."""
    tokens = [tokenize(text) for text in texts]
    rows = torch.full((len(texts), max(map(len, tokens))), PADDING)
    for row, part in zip(rows, tokens, strict=True):
        row[: len(part)] = torch.tensor(part)
    return rows


@dataclass(frozen=True)
class Captions:
    """`tokens` [B, L] and end-of-text positions `eot` [B]; `said` [B, ASPECTS] holds what is said of each aspect, or -1."""

    tokens: Tensor
    eot: Tensor
    said: Tensor


class CaptionWriter:
    """Writes captions for batches of drawn images, on one device."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = token_table(names).to(device)
        self.openings = token_table([*OPENINGS, ""]).to(device)
        said = [sorted({look.words[aspect] for look in LOOKS}) for aspect in range(ASPECTS)]
        self.values = torch.tensor(
            [[said[aspect].index(look.words[aspect]) for aspect in range(ASPECTS)] for look in LOOKS], device=device
        )
        before, paper = said[:-1], [f"on {word}" for word in said[-1]]
        self.phrases = [token_table([*words, ""]).to(device) for words in (*before, paper)]

    @property
    def longest(self) -> int:
        """The largest number of tokens that a caption may have."""
        return 2 + self.names.shape[1] + self.openings.shape[1] + sum(part.shape[1] for part in self.phrases)

    def write(self, char: Tensor, look: Tensor, draw: torch.Generator) -> Captions:
        """A random caption for each image, from its character [B] and look [B]."""

        def chance(*size: int) -> Tensor:
            return torch.rand(*size, generator=draw, device=char.device)

        count = len(char)
        said = torch.where(chance(count, ASPECTS) < SAID_SHARE, self.values[look], -1)
        which = (chance(count) * len(OPENINGS)).long()
        opening = self.openings[torch.where(chance(count) < OPENING_SHARE, which, -1)]
        phrases = [table[said[:, aspect]] for aspect, table in enumerate(self.phrases)]
        edge = torch.full((count, 1), PADDING, device=char.device)
        parts = [edge + START, opening, *phrases[:-1], self.names[char], phrases[-1], edge + END]
        gappy = torch.cat(parts, 1)
        order = torch.sort((gappy == PADDING).to(torch.uint8), dim=1, stable=True).indices
        tokens = gappy.gather(1, order)
        return Captions(tokens, (tokens != PADDING).sum(1) - 1, said)

    def truth(self, captions: Captions, captioned: Tensor, char: Tensor, look: Tensor) -> Tensor:
        """Which caption (of characters `captioned` [T]) is true of which image, bool [N, T]."""
        true = char[:, None] == captioned[None]
        for aspect in range(ASPECTS):
            claim = captions.said[None, :, aspect]
            true = true & ((claim < 0) | (claim == self.values[look][:, None, aspect]))
        return true
