"""FedTPG: a network that all clients share makes the context vectors from the class names, so it can serve other classes.

Source: Qiu et al., ICLR 2024, arXiv 2310.06123, read in the form of FLiP (https://github.com/0-ml/flip,
flcore/models/text/utils.py, PromptTranslator with depth 0): learned queries attend to the text features of the class names in
several heads, with layer norms before, and a gated feed-forward network with a residual connection follows. The result is the
contexts of all classes. Clients train the network, and the server averages it.

Differences: the text features are those of the backbone's template, and matrices start from N(0, 1 / inputs) with zero biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import ContextPrompt as Base
from fedbench.method import Fidelity, Param, Task, Values, option


@dataclass(frozen=True)
class Method(Base):
    """Context vectors that an averaged network makes of the class names."""

    citation: ClassVar[str] = "Qiu et al. 2024, arXiv 2310.06123"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    context_length: Annotated[int, Field(ge=1)] = option(4, "P: context vectors before a class name")
    heads: Annotated[int, Field(ge=1)] = option(4, "heads of the attention to class names; they must divide D_text")

    def params(self, task: Task) -> dict[str, Param]:
        """``query`` [P, D], and norms, matrices [out, in] and biases of the network. Raises ValueError for other heads."""
        width = task.text_width
        features = width if task.class_text is None else task.class_text.shape[-1]
        if width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide the text tower's width {width}")
        sizes = {
            "q": (width, width),
            "k": (width, features),
            "v": (width, features),
            "out": (width, width),
            "ff_in": (8 * width, width),
            "ff_out": (width, 4 * width),
        }
        made = {"query": task.normal("query", self.context_length, width, std=0.02)}
        for name, (outputs, inputs) in sizes.items():
            made[f"{name}.weight"] = task.normal(f"{name}.weight", outputs, inputs, std=inputs**-0.5)
            if name != "k":  # the same number for all keys changes no attention
                made[f"{name}.bias"] = torch.zeros(outputs)
        for name, size in (("query_norm", width), ("text_norm", features), ("ff_norm", width)):
            made |= {f"{name}.weight": torch.ones(size), f"{name}.bias": torch.zeros(size)}
        return {name: Param(value) for name, value in made.items()}

    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The network's vectors for the class names of this step."""

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

        def split(x: Tensor) -> Tensor:
            heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(0, 1)
            return heads  # [heads, tokens, D / heads]

        text = norm(p["class_text"], "text_norm")
        q, k, v = split(linear(norm(p["query"], "query_norm"), "q")), split(linear(text, "k")), split(linear(text, "v"))
        attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = linear((attention @ v).transpose(0, 1).flatten(1), "out")
        hidden, gate = linear(norm(x, "ff_norm"), "ff_in").chunk(2, dim=-1)
        return {"context": x + linear(hidden * F.gelu(gate), "ff_out")}
