"""pFedPG: the server generates each client's prompts from base prompts and a descriptor of the client.

Source: Yang et al. 2023 (ICCV), arXiv 2308.15367 (paper; there is no official code). The client trains the prompts P_n that
it receives and a head of its own, and returns the change of P_n. The generator is one cross-attention with the descriptor
d_n as the query and the base prompts as keys and values: P_n = P_base + softmax(d_n W_Q (P_base W_K)^T / sqrt(D')) P_base
W_V W_O. The server steps by the chain rule: the gradient of (P_base, d, W) is the vector-Jacobian product of P_n with P_n -
P_n~, where P_n~ is what the client returned.

Open in the paper and decided here (ours): d_n is one vector, so one residual is added to all tokens. Clients are weighted
by n_k. The server takes plain gradient steps, so descriptors of absent clients stay (with Adam, as in a public port, they
move). `server_lr` is 1, at which the base prompts alone would be FedAvg's (the paper's 1e-3 belongs to clients with a
learning rate of 0.25). Linear maps start as U(-1/sqrt(D), 1/sqrt(D)), descriptors as N(0, 1).

A client that never took part gets the prompts of its initial descriptor and the initial head, which can only guess;
`finetune_epochs` trains both.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Param, Task, Values, linear_head, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Prompts P_n [P, D] at block 0, made for each client by a generator at the server, and a local head."""

    prompt_length: Annotated[int, Field(ge=1)] = option(10, "P: prompt tokens at the input of the first block")
    attention_width: Annotated[int, Field(ge=1)] | None = option(None, "D': width of the attention; default: D")
    server_lr: Annotated[float, Field(gt=0)] = option(1.0, "learning rate of the generator")

    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "server_lr": {"log": (0.1, 10.0)}}
    citation: ClassVar[str] = "Yang et al. 2023, arXiv 2308.15367"

    def params(self, task: Task) -> dict[str, Param]:
        """The client's prompt [P, D] and head; the server's base [P, D], descriptors [clients, D] and four maps."""
        width, inner = task.width, self.attention_width or task.width
        base = task.prompt_init("prompt", self.prompt_length, width)
        generator = {"base": base, "descriptor": task.normal("descriptor", task.num_clients, width, std=1.0)}
        for name, shape in {
            "W_Q": (width, inner),
            "W_K": (width, inner),
            "W_V": (width, inner),
            "W_O": (inner, width),
        }.items():
            generator[name] = task.uniform(f"generator.{name}", *shape, bound=shape[0] ** -0.5)
        return {
            "prompt": Param(base, "local", lr_scale=self.prompt_lr_scale),  # replaced by `send`
            **linear_head(task, "local"),
            **{f"generator.{name}": Param(value, "server_only") for name, value in generator.items()},
        }

    def generate(self, server: Values, clients: Tensor) -> Tensor:
        """P_n [K, P, D] of the clients [K]."""
        base, w_k, w_v = (server[f"generator.{name}"] for name in ("base", "W_K", "W_V"))
        q = server["generator.descriptor"][clients] @ server["generator.W_Q"]  # [K, D']
        a = (q @ (base @ w_k).T / q.shape[1] ** 0.5).softmax(-1)  # [K, P]
        made: Tensor = base + (a @ (base @ w_v) @ server["generator.W_O"])[:, None]  # [K, P, D]
        return made

    def send(self, server: Values, clients: Tensor) -> dict[str, Tensor]:
        """Each client's own prompts."""
        return {"prompt": self.generate(server, clients)}

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """One gradient step of the generator towards the prompts that the clients returned."""
        weight = updates.share.to(updates.updated["prompt"])[:, None, None]
        back = weight * (updates.received["prompt"] - updates.updated["prompt"])  # [K, P, D]
        with torch.enable_grad():
            leaves = {n: v.detach().requires_grad_() for n, v in server.items() if n.startswith("generator.")}
            gradients = torch.autograd.grad(self.generate(leaves, updates.clients), list(leaves.values()), back)
        return {n: v.detach() - self.server_lr * g for (n, v), g in zip(leaves.items(), gradients, strict=True)}
