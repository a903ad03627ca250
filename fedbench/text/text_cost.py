"""Multiply-adds of class texts, counted from sizes and tokens, and the text part of a planned task, without any weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedbench.method import Task
from fedbench.text.tokenizers import tokenizer
from fedbench.vit import two_towers


@dataclass(frozen=True)
class TextCost:
    """What decides about the cost of class texts: numbers of a text tower, and the tokens of each class name."""

    width: int
    embed_dim: int
    layers: int
    tokens: tuple[int, ...]  # of a class name with its start and end, without contexts

    def step(self, contexts: Mapping[str, Tensor]) -> int:
        """Multiply-adds of the texts of all classes, forwards and backwards, behind the vectors {slot: [(C,) P, D_text]}."""
        return sum(
            self._tower(tokens + value.shape[-2], value.requires_grad)
            for value in contexts.values()
            for tokens in self.tokens
        )

    def _tower(self, tokens: int, backward: bool) -> int:
        linear, attention = 12 * tokens * self.width**2, 2 * tokens**2 * self.width
        once = self.layers * (linear + attention) + self.width * self.embed_dim
        return once + backward * (once + self.layers * attention)


def planned_text(task: Task, name: str, weights: Path | None, names: Sequence[str]) -> tuple[Task, TextCost]:
    """The `task` with the sizes of the model's text tower, and the cost of the class `names`. Raises WeightsError."""
    text = two_towers.sizes(name, weights)
    encode, end = tokenizer(text.tokenizer)
    tokens = encode([f"{word}." for word in names], text.text["context_length"])
    lengths = ((tokens == end).int().argmax(1) + 1).tolist()
    width, embed_dim = text.text["width"], text.text["embed_dim"]
    made = replace(task, text_width=width, class_text=torch.zeros(len(names), embed_dim))
    return made, TextCost(width, embed_dim, text.text["layers"], tuple(lengths))
