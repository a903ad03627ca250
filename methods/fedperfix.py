"""FedPerfix: personal prefixes of keys and values in every block, made by a local adapter, and a local head.

Source: Sun et al. 2023 (ICCV), arXiv 2308.09160 (code). In every block, `scale` times Up(tanh(Down(x))) of a bottleneck adapter
is added to the keys and values of each token, x being the token after the block's first norm. Adapters and the head stay with
the client, and all clients start from the same ones. The backbone is trained and averaged by n_k (`share: backbone`); for
CIFAR-100 the code keeps the last block local, too (`local_blocks: 1`). Ours: by default the backbone is frozen and clients
share prompts at block 0 instead; the head starts from N(0, .02^2) (in the code from timm's start); the learning rate is the
run's (code: SGD .005 without momentum). `prefix: tokens` has P learnt pairs of a key and a value for each block in place of the
adapter (Li and Liang 2021, arXiv 2101.00190, without their reparameterisation).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, linear_head, only_if, option, tokens
from fedbench.method import InputPrompt as Base

NEEDS_PROMPTS = ("`share: prompts`", lambda options: options.share == "prompts")
NEEDS_ADAPTER = ("`prefix: adapter`", lambda options: options.prefix == "adapter")


@dataclass(frozen=True)
class Method(Base):
    """Local adapters of all L blocks and a local head; shared prompts [P, D], or a shared backbone."""

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: shared prompt tokens at block 0", needs=NEEDS_PROMPTS)
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(
        1.0, "factor on the learning rate of the prompts", needs=NEEDS_PROMPTS
    )
    share: Literal["prompts", "backbone"] = option(
        "prompts", "what the server averages: prompts of a frozen backbone, or all of the backbone's tensors (slow)"
    )
    local_blocks: Annotated[int, Field(ge=0)] = option(
        0,
        "last blocks whose tensors stay with the client",
        needs=("`share: backbone`", lambda options: options.share == "backbone"),
    )
    prefix: Literal["adapter", "tokens"] = option("adapter", "what makes the prefixes: an adapter, or learnt pairs")
    prefix_length: Annotated[int, Field(ge=1)] = option(
        8,
        "learnt pairs of a key and a value in each block",
        needs=("`prefix: tokens`", lambda options: options.prefix == "tokens"),
    )
    bottleneck: Annotated[int, Field(ge=1)] = option(256, "M: width of the adapter's bottleneck", needs=NEEDS_ADAPTER)
    scale: float = option(1.5, "factor on what the adapter adds to keys and values", needs=NEEDS_ADAPTER)

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "scale": {"log": (0.1, 10.0)}}
    citation: ClassVar[str] = "Sun et al. 2023 (ICCV), arXiv 2308.09160"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    @property
    def label_note(self) -> str:
        """Whether the fields give the official form."""
        return "" if (self.share, self.prefix) == ("backbone", "adapter") else "not the official form"

    def layers(self, depth: int) -> tuple[int, ...]:
        """All blocks."""
        return tuple(range(depth))

    def params(self, task: Task) -> dict[str, Param]:
        """What is shared; each client's down [L, M, D] and up [L, 2D, M] with biases, or pairs [L, 2, P, D]; its head."""
        shared = self.prompt_param(task) if self.share == "prompts" else {}
        if self.share == "backbone":
            local = tuple(f"vit.blocks.{i}." for i in range(task.depth - self.local_blocks, task.depth))
            for name, value in task.frozen.items():
                shared[name] = Param(value.detach(), "local" if name.startswith(local) else "shared")
        return shared | self._prefix_params(task) | linear_head(task, "local")

    def _prefix_params(self, task: Task) -> dict[str, Param]:
        """The local prefixes: as `torch.nn.Linear` starts, U(+-1/sqrt(inputs)), or as prompts start."""
        depth, width, middle = task.depth, task.width, self.bottleneck
        if self.prefix == "tokens":
            return {"pairs": Param(task.prompt_init("pairs", depth, 2, self.prefix_length, width), "local")}
        shapes = {"down": ((middle, width), width), "up": ((2 * width, middle), middle)}
        made = {}
        for name, (shape, inputs) in shapes.items():
            bound = inputs**-0.5
            made[f"{name}.weight"] = Param(task.uniform(f"{name}.weight", depth, *shape, bound=bound), "local")
            made[f"{name}.bias"] = Param(task.uniform(f"{name}.bias", depth, shape[0], bound=bound), "local")
        return made

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The shared prompts at block 0."""
        return {"prompt": tokens(p["prompt"], cls)} if layer == 0 and self.share == "prompts" else {}

    def prefixes(self, layer: int, p: Values, tokens: Tensor) -> dict[str, Tensor]:
        """What the block's adapter adds to the keys and values of each token [B, T, D], or the block's pairs [B, P, D]."""
        if self.prefix == "tokens":
            keys, values = p["pairs"][layer].unsqueeze(1).expand(-1, len(tokens), -1, -1)
            return {"keys": keys, "values": values}
        hidden = torch.tanh(F.linear(tokens, p["down.weight"][layer], p["down.bias"][layer]))
        keys, values = (self.scale * F.linear(hidden, p["up.weight"][layer], p["up.bias"][layer])).chunk(2, -1)
        return {"added_keys": keys, "added_values": values}

    @only_if(lambda self: self.share == "backbone")
    def backbone_weights(self, p: Values, frozen: Values) -> dict[str, Tensor]:
        """The client's own tensors in place of the frozen ones."""
        return {name: p[name] for name in frozen}
