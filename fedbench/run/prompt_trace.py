"""A method's `prompts` for one image as a plain Python function of torch operations, which needs no fedbench.

`torch.fx` records the operations that a hook calls. The hook maps over clients and samples, so its operations do not depend on
values, and those for one image are those for every image.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from fedbench.method import Method
from fedbench.run.stacked import Stacked


@dataclass(frozen=True)
class PromptTrace:
    """The text of a function ``name(values, cls, query)``, the length of each slot, and tensors that the text reads."""

    name: str
    text: str
    lengths: dict[str, int]  # {slot: prompt tokens}
    constants: dict[str, Tensor]  # beside the method's values, also read from `values`


def traced(method: Method, layer: int, p: Stacked, cls: Tensor, query: Tensor) -> PromptTrace:
    """The trace of `method.prompts` at block `layer` for the values `p`; `cls` and `query` [1, D] are of one image."""

    def prompts(*arguments: Tensor) -> dict[str, Tensor]:
        *values, cls_, query_ = arguments
        return method.prompts(layer, dict(zip(p, values, strict=True)), cls_, query_)

    with torch.no_grad():
        module = make_fx(prompts)(*p.values(), cls, query)
        lengths = {slot: value.shape[1] for slot, value in prompts(*p.values(), cls, query).items()}
    module.graph.eliminate_dead_code()
    names = iter([*(f"values[{name!r}]" for name in p), "cls", "query"])
    words: dict[Node, str] = {}  # what stands for a node in the text
    lines: list[str] = []
    constants: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            words[node] = next(names)
        elif node.op == "get_attr":
            constant = f"constant.{layer}.{len(constants)}"
            constants[constant] = getattr(module, node.target).detach()
            words[node] = f"values[{constant!r}]"
        elif node.op == "output":
            returned = ", ".join(f"{slot!r}: {words[value]}" for slot, value in node.args[0].items())
            lines.append(f"return {{{returned}}}")
        elif node.target is torch.ops.aten.detach.default:
            words[node] = words[node.args[0]]
        else:
            words[node] = f"{node.name}_" if node.name in ("values", "cls", "query", "aten", "torch") else node.name
            lines.append(f"{words[node]} = {_call(node, words)}")
    name = f"prompts_at_{layer}"
    says = f'"""{{slot: [1, P, D]}} that enter block {layer}, for one image; cls and query [1, D]."""'
    return PromptTrace(name, "\n    ".join([f"def {name}(values, cls, query):", says, *lines]), lengths, constants)


def _call(node: Node, words: dict[Node, str]) -> str:
    """The text of an operation, such as ``aten.mm.default(a, b)``."""
    if node.target is operator.getitem:
        return f"{_word(node.args[0], words)}[{node.args[1]}]"
    parts = [_word(value, words) for value in node.args]
    parts += [f"{name}={_word(value, words)}" for name, value in node.kwargs.items()]
    return f"{node.target}({', '.join(parts)})"


def _word(value: Any, words: dict[Node, str]) -> str:
    """The text of an argument: a node, a number, or a list of them."""
    if isinstance(value, Node):
        return words[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_word(part, words) for part in value)}]"
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, float):
        return f"float({str(value)!r})" if value in (float("inf"), float("-inf")) or value != value else repr(value)
    return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else repr(value)
