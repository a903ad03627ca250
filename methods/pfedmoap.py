"""pFedMoAP: clients download other clients' context vectors as fixed experts, and a local gate mixes the texts behind all.

Source: Luo et al., ICLR 2025, arXiv 2410.10114; official code https://github.com/ljaiverson/pFedMoAP. The contexts start from
the average and are averaged, as in PromptFL. The server also keeps each client's last contexts. A client that took part
before receives those of `experts` other clients. Its gate is an attention with the image as the query and, for each class,
the texts of all experts (its own included) as keys and values, on every n-th feature. The scores are lambda * (cosine with
the client's own text) + (product of the image and the gate's text). In its first round a client has no experts and trains
its contexts alone. An evaluation uses the client's own last contexts, not the average, and experts from its second round on.

The code's argument `--sparse_selection nearest`, its default, has no effect: it always takes the same clients in a random
order (`selection: random`). Its branch for the nearest clients cannot run. `nearest` here is the paper's.

Differences: all clients of a cohort download the experts of the round before, while in the code later clients see earlier
ones. Each client starts with the same initial gate and without experts, while the code leaves those of the client before in
place in a client's first two rounds. Weight decay acts on the gate in a client's first round, too. The scores are computed
in another order of products. A client that never took part has the average and no experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Fidelity, Param, Phases, Task, Values, cosine_logits, option
from fedbench.method import ContextPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Averaged contexts, other clients' contexts as fixed experts, and a local gate that mixes the texts behind them."""

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Luo et al. 2025, arXiv 2410.10114"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    phases: ClassVar[Phases | None] = (("context", "gate"),)
    finetune_phases: ClassVar[Phases | None] = (("last", "gate"),)
    search: ClassVar = {
        **Base.search,
        "gate_lr_scale": {"log": (0.1, 100.0)},
        "local_share": {"linear": (0.0, 1.0)},
    }

    experts: Annotated[int, Field(ge=1)] = option(9, "the most other clients whose contexts a client downloads")
    selection: Literal["nearest", "random"] = option(
        "nearest", "whose: the clients with the nearest contexts, or the same clients for all, in a random order"
    )
    local_share: Annotated[float, Field(ge=0)] = option(0.5, "lambda: factor on the scores of the client's own text")
    gate_lr_scale: Annotated[float, Field(gt=0)] = option(5.0, "factor on the learning rate of the gate")
    gate_width: Annotated[int, Field(ge=1)] = option(
        128, "d: the gate reads every (E // d)-th of the E features; all of them if there are fewer"
    )
    gate_heads: Annotated[int, Field(ge=1)] | None = option(
        None, "heads of the gate; default: 8, or the most below 8 that divide its width"
    )
    scaling: Annotated[float, Field(gt=0)] = option(10.0, "factor on the gate's products of queries and keys")

    def params(self, task: Task) -> dict[str, Param]:
        """``context`` and ``last`` [P, D_text], the gate's maps q, k, v, o [4, d, d], the experts and the server's pool.

        ``taken_part`` counts the client's rounds. Raises ValueError if `gate_heads` do not divide the gate's width.
        """
        features = task.text_width if task.class_text is None else task.class_text.shape[-1]
        width = len(range(0, features, self._step(features)))
        if width % self._heads(width):
            raise ValueError(f"gate_heads {self.gate_heads} do not divide the gate's width {width}")
        start = self.context_param(task)
        shape = start["context"].init.shape
        order = task.normal("order", task.num_clients, std=1.0)
        gate = {
            "gate.weight": task.uniform("gate.weight", 4, width, width, bound=width**-0.5),
            "gate.bias": task.uniform("gate.bias", 4, width, bound=width**-0.5),
        }
        return {
            **start,
            **{name: Param(value, "local", lr_scale=self.gate_lr_scale) for name, value in gate.items()},
            "last": Param(start["context"].init, "local", trained=False),
            "taken_part": Param(torch.zeros(()), "local", trained=False),
            "experts": Param(torch.zeros(self.experts, *shape), trained=False),  # made by `send`
            "pool": Param(torch.zeros(0, *shape), "server_only"),
            "owner": Param(torch.zeros(0, dtype=torch.long), "server_only"),
            **({"order": Param(order, "server_only")} if self.selection == "random" else {}),
        }

    def _step(self, features: int) -> int:
        return max(1, features // self.gate_width)

    def _heads(self, width: int) -> int:
        return self.gate_heads or max(heads for heads in range(1, 9) if width % heads == 0)

    # -- the client ------------------------------------------------------------------------------------------------
    def contexts(self, p: Values) -> dict[str, Tensor]:
        """The slot ``context``: the trained contexts, or the client's last ones in evaluation; and a slot for each expert."""
        contexts = p["last"] if self.phase is None else p["context"]
        return {"context": contexts} | {f"expert{i}": expert for i, expert in enumerate(p["experts"])}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Scores of the client's own text, and with experts also those of the gate's mixture."""
        local = cosine_logits(p, out, p["text.context"])
        step = self._step(out["image"].shape[-1])
        texts = [p["text.context"], *(p[f"text.expert{i}"] for i in range(self.experts))]
        image, text = out["image"][:, ::step], torch.stack(texts, 1)[..., ::step]  # [B, d], [C, 1 + experts, d]
        (w_q, w_k, w_v, w_o), (b_q, b_k, b_v, b_o) = p["gate.weight"], p["gate.bias"]

        def split(x: Tensor) -> Tensor:
            heads: Tensor = x.unflatten(-1, (self._heads(image.shape[-1]), -1))
            return heads  # [..., heads, d / heads]

        known = (p["experts"] != 0).flatten(1).any(1)
        masked = torch.cat([known.new_zeros(1), ~known])  # the client's own text is always there
        query, key = split(F.linear(image, w_q, b_q)), split(F.linear(text, w_k, b_k))
        value = split(F.linear(text, w_v, b_v))
        scores = torch.einsum("bhd,cehd->bche", query, key) * self.scaling
        weight = scores.masked_fill(masked, -torch.inf).softmax(-1)
        # The product of the image and the output map's text, without that text for each image and class.
        product = torch.einsum("bhd,cehd->bche", split(image @ w_o), value)
        mixed = (weight * product).sum((-2, -1)) + (image @ b_o)[:, None]
        mixes = known.any() if self.phase is not None else known.any() & (p["taken_part"] > 1)  # the gate is trained
        return torch.where(mixes, self.local_share * local + p["logit_scale"] * mixed, local)

    def newcomer(self, p: Values) -> dict[str, Tensor]:
        """A client that never took part answers with the average."""
        return {"last": p["context"]}

    # -- the server ------------------------------------------------------------------------------------------------
    def send(self, server: Values, clients: Tensor) -> dict[str, Tensor]:
        """Each client's experts [K, experts, P, D_text]; zeros in place of those that there are not."""
        pool, is_self = server["pool"], clients[:, None] == server["owner"]  # [K, M]
        count = min(self.experts, len(pool))
        if self.selection == "nearest":
            prompts = pool.flatten(1)
            last = is_self.to(prompts) @ prompts
            distance = torch.cdist(last, prompts, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            distance = server["order"][server["owner"]].expand(len(clients), -1)
        nearest, rows = distance.masked_fill(is_self, torch.inf).topk(count, largest=False)
        there = nearest.isfinite() & is_self.any(1, keepdim=True)
        experts = pool.new_zeros(len(clients), self.experts, *pool.shape[1:])
        experts[:, :count] = torch.where(there[..., None, None], pool[rows], experts[:, :count])
        return {"experts": experts}

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The pool with the cohort's contexts, which are also each client's last ones."""
        last, clients = updates.updated["context"], updates.clients
        absent = ~(server["owner"][:, None] == clients).any(1)
        pool, owner = torch.cat([server["pool"][absent], last]), torch.cat([server["owner"][absent], clients])
        return {"last": last, "taken_part": updates.received["taken_part"] + 1, "pool": pool, "owner": owner}
