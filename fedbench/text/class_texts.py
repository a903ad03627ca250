"""The class names of a task in the frozen text tower, alone or behind the context vectors of stacked clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedbench.text.text_cost import TextCost
from fedbench.text.tokenizers import Encode, tokenizer
from fedbench.text.tower import Beginning, TextTower
from fedbench.vit import two_towers

PASS_BYTES = 4 << 20  # the widest activation of a pass should stay in a shared cache of this size
KEPT_BYTES = 2 << 30  # what passes may keep for the backward pass; beyond it, the backward pass computes them again


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """What a vision-language model has beside its image tower.

    ``scale`` [] multiplies cosines; ``end`` is the number of the end-of-text token.
    """

    tower: TextTower
    projection: Tensor  # [D, E] of the image tower's CLS token
    scale: Tensor
    encode: Encode
    end: int
    template: str


def text_side(
    name: str, weights: Path | None, template: str | None, device: torch.device, dtype: torch.dtype
) -> TextSide:
    """The text side of the model `name`. Raises WeightsError."""
    sizes = two_towers.sizes(name, weights)
    state = two_towers.tensors(name, weights)
    encode, end = tokenizer(sizes.tokenizer)
    tower = TextTower(**sizes.text, activation=sizes.activation)
    two_towers.load(tower, two_towers.part(state, "text."), str(weights or name))
    return TextSide(
        tower=tower.eval().requires_grad_(False).to(device, dtype),
        projection=state["visual_projection"].to(device, dtype),
        scale=state["logit_scale"].exp().to(device, dtype),
        encode=encode,
        end=end,
        template=sizes.template if template is None else template,
    )


@dataclass(frozen=True)
class Names:
    """The tokens of class names behind the contexts, in the order in which they pass the tower."""

    words: Tensor  # [C, R, D] embeddings of "name." and the end token
    ends: tuple[int, ...]  # the position of the end token among the words of each class
    at: Tensor  # [C] the same on the device

    def part(self, classes: slice) -> Names:
        """Some of the classes, cut behind their last end."""
        ends = self.ends[classes]
        return Names(self.words[classes, : max(ends) + 1], ends, self.at[classes])


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """The C class names of a task, ready for context vectors. All features have length 1."""

    side: TextSide
    names: tuple[str, ...]
    start: Tensor  # [D] the embedding of the start token
    words: Tensor  # [C, R, D] the embeddings of "name." and the end token, cut behind the last end
    ends: tuple[int, ...]  # the position of the end token among the words of each class
    at: Tensor  # [C] the same on the device
    template: Tensor  # [C, E] features of the texts that the template makes of the names

    @classmethod
    @torch.no_grad()
    def of(cls, side: TextSide, names: Sequence[str]) -> ClassTexts:
        """Encode class names. Raises ValueError if a text is longer than the tower's context."""
        tower = side.tower
        tokens, ends = encoded(side, [f"{_plain(name)}." for name in names])
        embedded = tower.embed(tokens[:, : max(ends) + 1])
        made = cls(
            side=side,
            names=tuple(names),
            start=embedded[0, 0],
            words=embedded[:, 1:],
            ends=tuple(end - 1 for end in ends),
            at=torch.tensor(ends, device=embedded.device) - 1,
            template=embedded.new_empty(0),
        )
        texts, text_ends = encoded(side, [side.template.format(_plain(name)) for name in names])
        whole = tower.embed(texts[:, : max(text_ends) + 1])
        eot = torch.tensor(text_ends, device=whole.device)
        features = torch.cat(
            [F.normalize(tower(x, e), dim=-1) for x, e in zip(whole.split(256), eot.split(256), strict=True)]
        )
        object.__setattr__(made, "template", features)
        return made

    def first(self, count: int) -> ClassTexts:
        """The texts of the first `count` classes."""
        return replace(
            self,
            names=self.names[:count],
            words=self.words[:count],
            ends=self.ends[:count],
            at=self.at[:count],
            template=self.template[:count],
        )

    def image(self, cls: Tensor) -> Tensor:
        """The image features [..., E] of CLS tokens [..., D]."""
        return F.normalize(cls @ self.side.projection, dim=-1)

    def cost(self) -> TextCost:
        """The sizes from which the multiply-adds of a step follow."""
        tower = self.side.tower
        lengths = tuple(end + 2 for end in self.ends)
        return TextCost(tower.width, tower.embed_dim, len(tower.transformer.resblocks), lengths)

    def length(self, contexts: int) -> int:
        """The tokens of the longest text behind `contexts` vectors. Raises ValueError if the tower has fewer positions."""
        longest = max(range(len(self.ends)), key=self.ends.__getitem__)
        length, most = 2 + contexts + self.ends[longest], self.side.tower.context_length
        if length > most:
            raise ValueError(
                f"{contexts} context vectors and the class name {self.names[longest]!r} make {length} tokens, but the text "
                f"tower has {most} positions"
            )
        return length

    def features(self, contexts: Tensor, compare: bool = True) -> Tensor:
        """The text features [K, C, E] of each client's class names behind its `contexts` [K, P, D] or [K, C, P, D].

        Clients and classes share the passes of the tower. If all clients have the same contexts, which `compare` looks for and
        then waits for the device, these pass once. Raises ValueError as `length` does.
        """
        count, classes, vectors = len(contexts), len(self.names), contexts.shape[-2]
        self.length(vectors)
        if compare and count > 1 and not contexts.requires_grad and bool((contexts == contexts[:1]).all()):
            return self.features(contexts[:1]).expand(count, -1, -1)  # all clients have the server's contexts
        names, passes, place = Names(self.words, self.ends, self.at), [slice(0, classes)], None
        alike = contexts.dim() == 3  # all classes begin with the same tokens
        kept = classes * self._kept_bytes(vectors, max(self.ends), count, alike)
        if classes * self._bytes(vectors, max(self.ends), count, alike) > PASS_BYTES:
            names, order, place = self._by_length
            passes = list(self._passes(names.ends, vectors, count, alike))
            contexts = contexts if alike else contexts[:, order]
        beginning = self._beginning(contexts) if alike else None
        parts = []
        for here in passes:
            inputs = (contexts[:, here] if beginning is None else beginning, names.part(here), count)
            if kept > KEPT_BYTES and contexts.requires_grad:
                part: Tensor = checkpoint(self._part, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                part = self._part(*inputs)
            parts.append(part)
        features = torch.cat(parts, 1)
        return features if place is None else features[:, place]

    def _beginning(self, contexts: Tensor) -> Beginning:
        """What all texts of a client need of their start token and its `contexts` [K, P, D]."""
        return self.side.tower.beginning(torch.cat([self.start.expand(len(contexts), 1, -1), contexts], 1))

    @cached_property
    def _by_length(self) -> tuple[Names, Tensor, Tensor]:
        """The classes from short to long names, so that a pass has little padding, their order [C], and its inverse [C]."""
        classes = sorted(range(len(self.ends)), key=self.ends.__getitem__)
        order = torch.tensor(classes, device=self.at.device)
        names = Names(self.words[order], tuple(self.ends[k] for k in classes), self.at[order])
        return names, order, order.argsort()

    def _bytes(self, vectors: int, end: int, count: int, alike: bool) -> int:
        """The widest activation of a text for `count` clients: 4 D numbers of 4 bytes for each token in an MLP.

        If texts begin `alike`, only their names pass the MLP, and all tokens have keys of D numbers.
        """
        words, all_tokens = end + 1, end + 2 + vectors
        return 4 * self.words.shape[-1] * count * (max(4 * words, all_tokens) if alike else 4 * all_tokens)

    def _kept_bytes(self, vectors: int, end: int, count: int, alike: bool) -> int:
        """What autograd keeps of a text for `count` clients: 14 D numbers of 4 bytes for each token of a block.

        If texts begin `alike`, a text keeps that of its name, and the keys and values of all tokens.
        """
        words, all_tokens = end + 1, end + 2 + vectors
        numbers = 14 * words + 2 * all_tokens if alike else 14 * all_tokens
        return 4 * self.words.shape[-1] * count * numbers * len(self.side.tower.transformer.resblocks)

    def _passes(self, ends: Sequence[int], vectors: int, count: int, alike: bool) -> Iterator[slice]:
        """Classes that pass together. Their `ends` rise, so the last text of a pass is its longest."""
        first = 0
        for stop in range(1, len(ends)):
            if (stop + 1 - first) * self._bytes(vectors, ends[stop], count, alike) > PASS_BYTES:
                yield slice(first, stop)
                first = stop
        yield slice(first, len(ends))

    def _part(self, before: Beginning | Tensor, names: Names, count: int) -> Tensor:
        """The features [K, c, E] of c classes behind a beginning, or behind contexts [K, c, P, D] of each class."""
        words = names.words.expand(count, -1, -1, -1)
        if not isinstance(before, Tensor):
            return F.normalize(self.side.tower.continued(before, words, names.at), dim=-1)
        classes, vectors = before.shape[1:3]
        x = torch.cat([self.start.expand(count, classes, 1, -1), before, words], 2).flatten(0, 1)
        eot = names.at.add(1 + vectors).repeat(count)
        return F.normalize(self.side.tower(x, eot), dim=-1).view(count, classes, -1)


def encoded(side: TextSide, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
    """The tokens [n, L] of texts, and the position of each text's end. Raises ValueError for a text that is too long."""
    most = side.tower.context_length
    tokens = side.encode(texts, most + 1).to(side.tower.token_embedding.weight.device)
    is_end = tokens == side.end
    ends = torch.where(is_end.any(1), is_end.int().argmax(1), most).tolist()
    if max(ends) >= most:
        text = texts[ends.index(max(ends))]
        raise ValueError(f"the text {text!r} has more than the {most} tokens of the text tower")
    return tokens, ends


def _plain(name: str) -> str:
    """A class name as CoOp writes it, without underscores."""
    return name.replace("_", " ")
