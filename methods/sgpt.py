"""SGPT: shared prompt tokens for all samples, and group tokens that each sample selects by its frozen feature.

Source: Deng, Thrampoulidis and Li, CVPR 2024, arXiv 2310.18285. From the authors' code (code): shared tokens start at zero,
enter after CLS and are never removed; `prompt_length` tokens enter the first shared block, one token each later one. Group
tokens start as VPT's. Each sample uses one group, that of the nearest key to ReLU(query) by cosine; in training the distance
is multiplied by how often the group has been chosen so far. The head reads the mean of CLS and the group tokens. There are
two local phases; the first has no groups and reads CLS alone. Groups and keys move towards their new values, each with its
own momentum. Keys are averaged by the clients' choices.

On feature shift the code takes other settings, each a field here: the query is CLS after block 5 (`query_block: 5`), in
training the whole batch takes its majority group (`choice: batch`), keys have no momentum (`key_momentum: 0`), and there is
one group per domain (`groups`). The key loss acts in the first epochs of the second phase (`key_epochs`; the code's
`--keyepoch 5` is 6).

Differences (ours): frequencies are those at the start of the round, over all rounds so far (the code updates them between the
clients of one round, so that their order matters). Every key starts with norm 1 (the code leaves out key 0).

Depth: with 12 blocks, the source has shared tokens at 0..3 and group tokens at 4..6 (0..4 and 5..6 for clients of 50 classes
and for feature shift). Another backbone of L blocks gets round(L/3) and then round(L/4) blocks, at least one of each: 2 and 2
for the 6 blocks of `nano`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import (
    ClientUpdates,
    Fidelity,
    Param,
    Phases,
    PlannedTask,
    Taps,
    Task,
    Values,
    linear_head,
    only_if,
    option,
    tokens,
)
from fedbench.method import Method as Base

FLOOR = 5e-4  # added to a group's frequency, so that distance still counts for groups that were never chosen
FEW = 50  # the key of a group with at most this many samples is averaged uniformly over clients


@dataclass(frozen=True)
class Method(Base):
    """Shared tokens at the first blocks, then, for each sample, one of G groups of tokens at the next blocks."""

    prompt_length: Annotated[int, Field(ge=1)] = option(
        1, "shared tokens added at the first shared block; each later one adds a single token"
    )
    group_length: Annotated[int, Field(ge=1)] = option(1, "group tokens added at each group block")
    groups: Annotated[int, Field(ge=1)] = option(20, "G: number of groups")
    shared_blocks: Annotated[int, Field(ge=1)] | None = option(
        None, "number of blocks that add shared tokens; default: a third of the backbone"
    )
    group_blocks: Annotated[int, Field(ge=1)] | None = option(
        None, "number of blocks after them that add group tokens; default: a quarter of the backbone"
    )
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(
        1.0, "factor on the learning rate of shared and group tokens"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = option(0.5, "share of the old group tokens in the new ones")
    key_momentum: Annotated[float, Field(ge=0, lt=1)] | None = option(
        None, "share of the old keys in the new ones; default: as `momentum`"
    )
    query_block: Annotated[int, Field(ge=0)] | None = option(
        None,
        "block after which the prompt-free CLS token (or mean patch token) is the query, normed; default: the last",
    )
    choice: Literal["sample", "batch"] = option(
        "sample", "who chooses a group in training: each sample, or the majority of a batch for all its samples"
    )
    key_epochs: Annotated[int, Field(ge=1)] | None = option(
        None, "epochs of the second phase with a loss on the keys, from its start; default: all"
    )

    family: ClassVar[str] = "grouped"
    search: ClassVar = {
        **Base.search,
        "prompt_lr_scale": {"log": (0.1, 100.0)},
        "groups": {"choice": (5, 10, 20, 40)},
    }
    citation: ClassVar[str] = "Deng et al. 2024 (CVPR), arXiv 2310.18285"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    reads_slots: ClassVar[bool] = True
    phases: ClassVar[Phases | None] = (("shared", "head"), ("group", "key", "head"))

    def _blocks(self, depth: int) -> tuple[int, int]:
        """How many blocks add shared tokens, and how many add group tokens."""
        return self.shared_blocks or max(1, round(depth / 3)), self.group_blocks or max(1, round(depth / 4))

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Shared and group blocks must fit into the backbone."""
        shared, grouped = self._blocks(task.depth)
        if shared + grouped > task.depth:
            raise ValueError(f"{shared} shared and {grouped} group blocks, but the backbone has {task.depth} blocks")

    def layers(self, depth: int) -> tuple[int, ...]:
        """The shared blocks; after the first phase also the group blocks behind them."""
        shared, grouped = self._blocks(depth)
        return tuple(range(shared if self.phase == 0 else shared + grouped))

    @property
    def uses_query(self) -> bool:
        """Groups are chosen by the prompt-free feature."""
        return True

    @property
    def query_after(self) -> int | None:
        """The block of the query."""
        return self.query_block

    def params(self, task: Task) -> dict[str, Param]:
        """shared [P + Ls - 1, 1, D], group [Lg, G, n, D], orthonormal keys [G, D], the head, and the groups' counts."""
        shared, grouped = self._blocks(task.depth)
        size, scale = (self.groups, self.group_length, task.width), self.prompt_lr_scale
        key = _orthonormal(task.normal("key", self.groups, task.width, std=1.0).double())
        return {
            "shared": Param(torch.zeros(self.prompt_length + shared - 1, 1, task.width), lr_scale=scale),
            "group": Param(task.prompt_init("group", grouped, *size), lr_scale=scale),
            "key": Param(key.float()),
            **linear_head(task),
            "frequency": Param(torch.zeros(self.groups), "server"),
            "count": Param(torch.zeros(self.groups, dtype=torch.float64), "server_only"),
        }

    def choose(self, p: Values, query: Tensor) -> tuple[Tensor, Tensor]:
        """The group of each sample [B], and the samples' cosines to all keys [B, G]."""
        cosine = F.normalize(query.relu(), dim=-1) @ F.normalize(p["key"], dim=-1).T
        distance = (1 - cosine).detach()
        if self.phase is not None:  # in training, frequent groups are further away
            distance = distance * (p["frequency"] + FLOOR)
        return p["majority"].expand(len(query)) if "majority" in p else distance.argmin(-1), cosine

    @only_if(lambda self: self.phase != 0 and (self.choice == "batch" or self.key_epochs is not None))
    def batch_values(self, p: Values, query: Tensor, weight: Tensor, epoch: Tensor) -> dict[str, Tensor]:
        """The group that most samples of the batch choose, and whether keys still have a loss."""
        values = {} if self.key_epochs is None else {"key_loss": (epoch < self.key_epochs).to(weight)}
        if self.choice == "batch":
            chosen, _ = self.choose(p, query)
            values["majority"] = (weight @ F.one_hot(chosen, self.groups).to(weight)).argmax()  # the first, in a tie
        return values

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """Each block adds a slot and replaces none, so tokens accumulate."""
        first = self.prompt_length
        before = len(p["shared"]) - first + 1
        if layer < before:
            new = p["shared"][:first, 0] if layer == 0 else p["shared"][first + layer - 1]
            return {f"shared{layer}": tokens(new, cls)}
        assert query is not None  # noqa: S101 - uses_query
        chosen, _ = self.choose(p, query)
        return {f"group{layer}": p["group"][layer - before][chosen]}  # [B, n, D]

    def logits(self, p: Values, out: Values) -> Tensor:
        """The head on the mean of CLS and the group tokens, [B, C]."""
        read = [out["cls"][:, None], *(value for slot, value in out.items() if slot.startswith("group"))]
        return F.linear(torch.cat(read, 1).mean(1), p["head.weight"], p["head.bias"])

    @only_if(lambda self: self.phase != 0)
    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """The second phase pulls keys towards the samples that chose them, [B]."""
        chosen, cosine = self.choose(p, query)
        loss = -cosine.gather(1, chosen[:, None])[:, 0]  # [B]
        return loss * p["key_loss"] if "key_loss" in p else loss

    @only_if(lambda self: self.phase != 0)
    def observe(self, p: Values, taps: Taps, query: Tensor, y: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """The second phase counts the samples that chose each group."""
        chosen, _ = self.choose(p, query)
        return {"chosen": (F.one_hot(chosen, self.groups).to(weight) * weight[:, None]).sum(0)}  # [G]

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """Groups averaged by n_k and keys by the clients' choices, both with momentum; the next round's frequencies."""
        chosen = updates.sums["chosen"]  # [K, G]
        total = chosen.sum(0)
        by_choice = torch.where(total > FEW, chosen / total.clamp(min=1), 1 / len(chosen))  # [K, G]
        key = torch.einsum("kg,kgd->gd", by_choice, updates.updated["key"])
        by_size = updates.share.to(key)  # [K]
        group = torch.tensordot(by_size, updates.updated["group"], dims=1)
        count = server["count"] + total
        m, m_key = self.momentum, self.momentum if self.key_momentum is None else self.key_momentum
        return {
            "group": m * server["group"] + (1 - m) * group,
            "key": m_key * server["key"] + (1 - m_key) * key,
            "count": count,
            "frequency": (count / count.sum()).to(key),
        }


def _orthonormal(draw: Tensor) -> Tensor:
    """Orthonormal rows (columns, if there are more rows than columns) from normal draws [G, D]."""
    wide = draw.shape[0] <= draw.shape[1]
    q, r = torch.linalg.qr(draw.T if wide else draw)
    q *= r.diagonal().sign()  # makes the factorisation unique
    rows: Tensor = q.T if wide else q
    return rows.contiguous()
