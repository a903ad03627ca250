"""The tokenizers of text towers by name: bytes, that of clip_nano, and those of open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor

from fedbench.vit import two_towers
from fedbench.vit.weights import WeightsError

Encode = Callable[[Sequence[str], int], Tensor]  # (texts, context length) -> tokens [n, L]
BYTES_END = 257


def tokenizer(name: str) -> tuple[Encode, int]:
    """The tokenizer called `name`, and the number of its end-of-text token. Raises WeightsError.

    ``bytes``: the bytes of a text in UTF-8 between 256 and 257; ``nano``: that of clip_nano; or that of an open_clip model.
    """
    if name == "bytes":
        return byte_tokens, BYTES_END
    if name == "nano":
        nano_tokenizer = import_module("fedbench.text.nano_tokenizer")  # reads its vocabulary
        return nano_tokenizer.encode, nano_tokenizer.END
    try:
        import open_clip
    except ImportError as error:
        raise WeightsError(two_towers.INSTALL) from error
    encode = open_clip.get_tokenizer(name)
    return lambda texts, length: encode(list(texts), context_length=length), encode.eot_token_id


def byte_tokens(texts: Sequence[str], length: int) -> Tensor:
    """The bytes of each text between the start and the end token, padded: [n, length]. Raises ValueError if it is too long."""
    rows = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        tokens = [BYTES_END - 1, *text.encode(), BYTES_END]
        if len(tokens) > length:
            raise ValueError(f"the text {text!r} has {len(tokens)} tokens, more than {length}")
        row[: len(tokens)] = torch.tensor(tokens)
    return rows
