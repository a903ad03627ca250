"""CLIP's text transformer. It starts from token embeddings, so that learned context vectors can stand among them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the shape stays."""
        return x * torch.sigmoid(1.702 * x)


KeysAndValues = tuple[Tensor, Tensor]  # each [K, heads, Q, D/heads]
Beginning = list[KeysAndValues]  # of each block
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class TextTower(nn.Module):
    """The text transformer of CLIP (Radford et al., ICML 2021) with open_clip's parameter names.

    Pre-norm blocks with causal attention. The feature of a text is ``ln_final`` of the token at its end-of-text position,
    times ``text_projection``. Raises ValueError for an unknown `activation` or a `width` that `heads` does not divide.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int,
        heads: int,
        layers: int,
        embed_dim: int,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.context_length, self.width, self.embed_dim = context_length, width, embed_dim
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = TextTransformer(width, heads, layers, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self._initialize()

    def _initialize(self) -> None:
        """CLIP's initial values, whose scale falls with width and depth."""
        width, layers = self.width, len(self.transformer.resblocks)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for name, value in self.transformer.named_parameters():
            if name.endswith("in_proj_weight"):
                nn.init.normal_(value, std=width**-0.5)
            elif name.endswith(("out_proj.weight", "c_proj.weight")):
                nn.init.normal_(value, std=(2 * width * layers) ** -0.5)
            elif name.endswith("c_fc.weight"):
                nn.init.normal_(value, std=(2 * width) ** -0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings [n, L, D] of `tokens` [n, L], without positions."""
        embeddings: Tensor = self.token_embedding(tokens)
        return embeddings

    def forward(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """The features [n, E] of texts from their token `embeddings` [n, L, D] and end-of-text positions `eot` [n].

        Attention is causal, so tokens after the end of a text do not matter: a caller may cut L at ``eot.max() + 1``.
        """
        x = embeddings + self.positional_embedding[: embeddings.shape[1]].to(embeddings.dtype)
        x = self.transformer(x)
        last = x.take_along_dim(eot[:, None, None], dim=1)[:, 0]
        features: Tensor = self.ln_final(last) @ self.text_projection
        return features

    def beginning(self, prefix: Tensor) -> Beginning:
        """What texts that begin with the tokens `prefix` [K, Q, D] need of it: the keys and values of each block."""
        x = prefix + self.positional_embedding[: prefix.shape[1]].to(prefix.dtype)
        blocks: list[Any] = list(self.transformer.resblocks)
        last, keys_and_values = blocks.pop(), []
        for block in blocks:
            x, pair = block.beginning(x)
            keys_and_values.append(pair)
        return [*keys_and_values, last.attn.keys_and_values(last.ln_1(x))]

    def continued(self, beginning: Beginning, rest: Tensor, eot: Tensor) -> Tensor:
        """The features [K, n, E] of n texts that begin alike, with `beginning`, and go on with `rest` [K, n, R, D].

        `eot` [n] are end-of-text positions among the rest. Attention is causal, so the tokens of a beginning are the same in
        all n texts and are computed once. Of the last block, only the end of a text is read. Equals `forward` on the joined
        tokens.
        """
        count, texts, length, _ = rest.shape
        shared = beginning[0][0].shape[2]
        x = (rest + self.positional_embedding[shared : shared + length].to(rest.dtype)).flatten(0, 1)
        blocks: list[Any] = list(zip(self.transformer.resblocks, beginning, strict=True))
        last, last_pair = blocks.pop()
        mask = torch.ones(length, shared + length, dtype=torch.bool, device=rest.device).tril(shared)
        for block, pair in blocks:
            x = block.continued(x, x, pair, mask)
        end = x.take_along_dim(eot.repeat(count)[:, None, None], dim=1)
        end = last.continued(end, x, last_pair, mask[eot].repeat(count, 1)[:, None, None])
        features: Tensor = self.ln_final(end[:, 0]) @ self.text_projection
        return features.view(count, texts, -1)


class TextTransformer(nn.Module):
    """A stack of causal blocks."""

    def __init__(self, width: int, heads: int, layers: int, activation: str) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """The tokens [n, L, D] after all blocks."""
        for block in self.resblocks:
            x = block(x)
        return x


class TextBlock(nn.Module):
    """A pre-norm block: causal attention, then an MLP of four times the width."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": ACTIVATIONS[activation](),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """The tokens [n, L, D] after this block."""
        x = x + self.attn(self.ln_1(x))
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result

    def beginning(self, x: Tensor) -> tuple[Tensor, KeysAndValues]:
        """The tokens [K, Q, D] after this block, and their keys and values in it."""
        mixed, pair = self.attn.beginning(self.ln_1(x))
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), pair

    def continued(self, x: Tensor, rest: Tensor, beginning: KeysAndValues, mask: Tensor) -> Tensor:
        """The tokens `x` [K * n, r, D] after this block, where they see `beginning` and the tokens `rest` [K * n, R, D]."""
        x = x + self.attn.continued(self.ln_1(x), self.ln_1(rest) if rest is not x else None, beginning, mask)
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


class CausalAttention(nn.Module):
    """Multi-head attention in which each token sees itself and the tokens before it; torch's parameter names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens [n, L, D]."""
        return self.beginning(x)[0]

    def beginning(self, x: Tensor) -> tuple[Tensor, KeysAndValues]:
        """The mixed tokens [K, Q, D], and their keys and values."""
        q, k, v = self._heads(x)
        return self._projected(F.scaled_dot_product_attention(q, k, v, is_causal=True)), (k, v)

    def keys_and_values(self, x: Tensor) -> KeysAndValues:
        """The keys and values of the tokens `x` [n, L, D]."""
        width = x.shape[-1]
        k, v = self._heads(x, slice(width, None))
        return k, v

    def continued(self, x: Tensor, rest: Tensor | None, beginning: KeysAndValues, mask: Tensor) -> Tensor:
        """The mixed tokens of `x` [K * n, r, D], which see a beginning and `rest` [K * n, R, D] (None: themselves)."""
        if rest is None:
            q, *pair = self._heads(x)
        else:
            (q,), pair = self._heads(x, slice(x.shape[-1])), list(self.keys_and_values(rest))
        texts = len(x) // len(beginning[0])
        k, v = (torch.cat([old.repeat_interleave(texts, 0), new], 2) for old, new in zip(beginning, pair, strict=True))
        return self._projected(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _heads(self, x: Tensor, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """Queries, keys and values [n, heads, L, D/heads], or those of them that have the `rows` of the weight."""
        n, length, width = x.shape
        y = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return y.view(n, length, -1, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()

    def _projected(self, mixed: Tensor) -> Tensor:
        n, _, length, _ = mixed.shape
        result: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(n, length, -1))
        return result
