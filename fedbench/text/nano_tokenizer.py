"""The tokenizer of clip_nano: words of Unicode names, and the bytes of every other word.

Tokens 0 to 255 are bytes; byte 0 is also the padding. The words of vocabulary.txt follow, then START, and END last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = Path(__file__).parent / "clip_nano" / "vocabulary.txt"
PADDING, BYTES = 0, 256
WORDS: dict[str, int] = {
    word: BYTES + index for index, word in enumerate(VOCABULARY.read_text(encoding="utf-8").split())
}
START = BYTES + len(WORDS)
END = START + 1
VOCAB_SIZE = END + 1


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


def tokenize(text: str) -> list[int]:
    """The tokens of a text without START and END. An unknown word becomes a blank and its bytes in UTF-8."""
    tokens: list[int] = []
    for word in words_of(text):
        tokens += [WORDS[word]] if word in WORDS else [ord(" "), *word.encode()]
    return tokens


def encode(texts: Sequence[str], context_length: int) -> Tensor:
    """The tokens of each text between START and END, padded: int64 [n, context_length].

    Raises ValueError if a text has more tokens than fit.
    """
    rows = torch.full((len(texts), context_length), PADDING)
    for row, text in zip(rows, texts, strict=True):
        tokens = [START, *tokenize(text), END]
        if len(tokens) > context_length:
            raise ValueError(f"{text!r} has {len(tokens)} tokens, but clip_nano reads at most {context_length}")
        row[: len(tokens)] = torch.tensor(tokens)
    return rows
