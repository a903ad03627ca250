"""PEP-FedPT as a base class: shared prompts, and class prompts that prototypes and the client's class prior mix per input.

`methods/pep_fedpt.py` gives the source and says what is our reading of it. Subclasses change only the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.base.options import option
from fedbench.base.planned_task import PlannedTask
from fedbench.method.building_blocks import class_sums, linear_head, log_prior, tokens
from fedbench.method.hooks import only_if
from fedbench.method.method import Method
from fedbench.method.param import Param, Taps, Values
from fedbench.method.task import Task
from fedbench.method.updates import ClientUpdates

SMOOTHING = 1e-3  # uniform mass mixed into a client's prior, so that no class has probability 0


@dataclass(frozen=True)
class ClassPrompt(Method):
    """Shared prompts [P, D] at block 0, class prompts [C, n, D] mixed into n tokens at block `inject`, a shared head."""

    prompt_length: Annotated[int, Field(ge=0)] = option(8, "P: shared prompt tokens at the first block; 0: none")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(
        1.0,
        "factor on the learning rate of the prompts",
        needs=("shared prompts (`prompt_length`)", lambda options: options.prompt_length > 0),
    )
    class_prompt_length: Annotated[int, Field(ge=1)] = option(1, "n: tokens of a class prompt, and of the mixed prompt")
    class_prompt_lr_scale: Annotated[float, Field(gt=0)] = option(
        30.0, "factor on the learning rate of the class prompts, which get small gradients because few samples use each"
    )
    inject: Annotated[int, Field(ge=0)] | None = option(
        None, "block at which the mixed prompt enters; default: the middle block"
    )
    temperature: Annotated[float, Field(gt=0)] = option(0.1, "tau: the similarity is divided by it")
    similarity: Literal["cosine", "euclidean"] = option(
        "cosine", "sim: cosine, or minus half the squared distance over D"
    )
    query: Literal["final", "inject"] = option(
        "final",
        "z(x). final: the prompt-free final feature; inject: the detached CLS token (or mean patch token) that enters block "
        "`inject`",
    )
    prior: Literal["client", "uniform", "none"] = option(
        "client", "pi_k. client: the client's class distribution; uniform, none: all classes weigh the same"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0,
        "momentum of the prototypes over rounds; with query inject only",
        needs=("`query: inject`", lambda options: options.query == "inject"),
    )
    average: Literal["samples", "class_counts"] = option(
        "samples",
        "weights of class prompt c in the average. samples: n_k; class_counts: the client's samples of class c",
    )
    prototypes: Literal["true", "shuffled"] = option(
        "true", "shuffled: each prototype stands for a random other class, a control that removes only their meaning"
    )

    citation: ClassVar[str] = "arXiv 2510.25372"
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
        **Method.search,
        "prompt_lr_scale": {"log": (0.1, 100.0)},
        "temperature": {"log": (0.03, 1.0)},
        "class_prompt_lr_scale": {"log": (1.0, 300.0)},
    }

    def _inject(self, depth: int) -> int:
        return depth // 2 if self.inject is None else self.inject

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Block `inject` must exist."""
        if self._inject(task.depth) >= task.depth:
            raise ValueError(f"inject is {self.inject}, but the backbone has the blocks 0..{task.depth - 1}")

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block if there are shared prompts, and block `inject`."""
        return tuple(sorted({0, self._inject(depth)})) if self.prompt_length else (self._inject(depth),)

    def taps(self, depth: int) -> tuple[int, ...]:
        """Block `inject`, if it provides the query."""
        return (self._inject(depth),) if self.query == "inject" else ()

    @property
    def uses_query(self) -> bool:
        """Whether z(x) is the prompt-free final feature."""
        return self.query == "final"

    @property
    def uses_prior(self) -> bool:
        """Whether pi_k enters the weights."""
        return self.prior == "client"

    def head_params(self, task: Task) -> dict[str, Param]:
        """The parameters that only `logits` reads."""
        return linear_head(task)

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] if any, class_prompt [C, n, D], the head, prototype [C, D], and the server's sums."""
        classes, width = task.num_classes, task.width
        order = torch.arange(classes)
        if self.prototypes == "shuffled":
            order = task.normal("shuffle", classes, std=1.0).argsort()
        zero = torch.zeros(classes, width)
        sums = {"sum": Param(zero, "server_only"), "count": Param(zero[:, 0], "server_only")}
        shared = Param(task.prompt_init("prompt", self.prompt_length, width), lr_scale=self.prompt_lr_scale)
        return {
            **({"prompt": shared} if self.prompt_length else {}),
            "class_prompt": Param(
                task.prompt_init("class_prompt", classes, self.class_prompt_length, width),
                lr_scale=self.class_prompt_lr_scale,
            ),
            **self.head_params(task),
            "prototype": Param(zero, "server"),
            "order": Param(order, "server_only"),
            **(sums if self.query == "final" else {}),
        }

    def weights(self, p: Values, z: Tensor) -> Tensor:
        """s(x) [B, C]: the posterior of the class given z [B, D], from the prototypes and the prior."""
        if self.similarity == "cosine":
            similarity = F.normalize(z, dim=-1) @ F.normalize(p["prototype"], dim=-1).T
        else:
            similarity = -(z[:, None] - p["prototype"]).square().mean(-1) / 2
        scores = similarity / self.temperature
        if self.prior == "client":
            scores = scores + log_prior(p["prior"], SMOOTHING)
        return scores.softmax(-1)

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The shared prompts at block 0; the mixed prompt m(x) [B, n, D] at block `inject`."""
        slots = {"prompt": tokens(p["prompt"], cls)} if layer == 0 and self.prompt_length else {}
        if layer == self.inject or (self.inject is None and layer > 0):
            z = query if self.query == "final" and query is not None else cls.detach()
            s = self.weights(p, z)
            slots["mixed"] = torch.einsum("bc,cnd->bnd", s, p["class_prompt"])
        return slots

    # -- prototypes ----------------------------------------------------------------------------------------------
    @only_if(lambda self: self.query == "final")
    def statistics(self, p: Values, query: Tensor, y: Tensor) -> dict[str, Tensor]:
        """With query final: class sums, reported once, since the feature never changes."""
        return class_sums(query, y, torch.ones_like(query[:, 0]), len(p["prototype"]))

    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:
        """mu_c over all clients that have reported; the prototype of an unseen class is zero."""
        total, count = server["sum"] + stats["sum"].sum(0), server["count"] + stats["count"].sum(0)
        mean = total / count.clamp(min=1)[:, None]
        return {"sum": total, "count": count, "prototype": mean[server["order"]]}

    @only_if(lambda self: self.query == "inject" or self.average == "class_counts")
    def observe(self, p: Values, taps: Taps, query: Tensor, y: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """With query inject: class sums every round, since the feature moves with the prompts; with class_counts: counts."""
        sums = class_sums(next(iter(taps.values()), weight[:, None]), y, weight, len(p["prototype"]))
        return sums if self.query == "inject" else {"count": sums["count"]}

    @only_if(lambda self: self.query == "inject" or self.average == "class_counts")
    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """Prototypes from this round's sums (query inject), class prompts averaged by class counts (average class_counts)."""
        new: dict[str, Tensor] = {}
        if self.query == "inject":
            count = updates.sums["count"].sum(0)[server["order"], None]
            mean = updates.sums["sum"].sum(0)[server["order"]] / count.clamp(min=1)
            old = server["prototype"]
            known = old.abs().sum(1, keepdim=True) > 0
            moved = torch.where(known, self.momentum * old + (1 - self.momentum) * mean, mean)
            new["prototype"] = torch.where(count > 0, moved, old)
        if self.average == "class_counts":
            count = updates.sums["count"]  # [K, C]
            share = count / count.sum(0).clamp(min=1)
            mean = torch.einsum("kc,kcnd->cnd", share, updates.updated["class_prompt"])
            new["class_prompt"] = torch.where(count.sum(0)[:, None, None] > 0, mean, server["class_prompt"])
        return new

    def picture(self, server: Values, prior: Tensor | None) -> dict[str, Tensor]:
        """PEP-FedPT: how an input whose query is exactly the prototype of a class (row) mixes the class prompts (columns).

        With equal priors, and with the prior of one client if the method uses it.
        """
        mean = server["prototype"]
        panels = {"equal priors": self.weights({"prototype": mean, "prior": torch.ones(len(mean)) / len(mean)}, mean)}
        if self.prior == "client" and prior is not None:
            panels["prior of a client"] = self.weights({"prototype": mean, "prior": prior}, mean)
        return panels
