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

    def continued(self, prefix: Tensor, rest: Tensor, eot: Tensor) -> Tensor:
        """The features [K, n, E] of n texts that begin alike: with `prefix` [K, Q, D], and go on with `rest` [K, n, R, D].

        `eot` [n] are end-of-text positions among the rest. Attention is causal, so the tokens of a prefix are the same in all n
        texts and are computed once. Equals `forward` on the joined tokens.
        """
        count, texts, length, _ = rest.shape
        shared = prefix.shape[1]
        positions = self.positional_embedding[: shared + length].to(rest.dtype)
        a, b = prefix + positions[:shared], (rest + positions[shared:]).flatten(0, 1)
        for block in self.transformer.resblocks:
            continued: Any = block.continued
            a, b = continued(a, b)
        last = b.take_along_dim(eot.repeat(count)[:, None, None], dim=1)[:, 0]
        features: Tensor = self.ln_final(last) @ self.text_projection
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

    def continued(self, prefix: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of K shared beginnings [K, Q, D], and of the n texts of each that go on from them [K * n, R, D]."""
        attended = self.attn.continued(self.ln_1(prefix), self.ln_1(rest))
        prefix, rest = (x + mixed for x, mixed in zip((prefix, rest), attended, strict=True))
        return prefix + self.mlp(self.ln_2(prefix)), rest + self.mlp(self.ln_2(rest))


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
        return self._projected(F.scaled_dot_product_attention(*self._heads(x), is_causal=True))

    def continued(self, prefix: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed tokens of shared beginnings [K, Q, D], and of their n texts each [K * n, R, D], which see them."""
        q, k, v = self._heads(prefix)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        texts, (shared, length) = len(rest) // len(prefix), (prefix.shape[1], rest.shape[1])
        queries, keys, values = self._heads(rest)
        keys, values = (torch.cat([old.repeat_interleave(texts, 0), new], 2) for old, new in ((k, keys), (v, values)))
        mask = torch.ones(length, shared + length, dtype=torch.bool, device=rest.device).tril(shared)
        continued = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self._projected(mixed), self._projected(continued)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [n, heads, L, D/heads]."""
        n, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _projected(self, mixed: Tensor) -> Tensor:
        n, _, length, _ = mixed.shape
        result: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(n, length, -1))
        return result
