"""The method contract: a federated prompt tuning method is a few small hooks, written for one client.

Legend used everywhere: K clients, B samples, C classes, P prompts, D width, L blocks, N images.

A method is a frozen dataclass called ``Method`` in a file of ``methods/``; its fields are its hyper-parameters and the
YAML block is its keyword arguments. The core maps the hooks over clients, so no hook ever sees a client axis except
`send`, `absorb` and `merge`, which run on the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench import rng

Values = Mapping[str, Tensor]
Home = Literal["shared", "local", "server", "server_only"]


def option(default: Any, meaning: str, **metadata: Any) -> Any:
    """A dataclass field with its meaning, which the listings and the reference pages print.

    ``told=True``: tables name its value even where it is the default.
    """
    return field(default=default, metadata={"meaning": meaning, **metadata})


@dataclass(frozen=True)
class Task:
    """What a method may know about the task before it starts.

    ``class_counts`` [clients, C] are the label histograms of the clients' training parts. Initial weights are drawn from
    streams named by the parameter, so methods that share a parameter's name, shape and law start from the same values.
    """

    num_classes: int
    num_clients: int
    width: int
    depth: int
    patch_size: int
    class_counts: Tensor
    seed: int

    def normal(self, name: str, *shape: int, std: float) -> Tensor:
        """N(0, std^2) draws of the given shape, from the stream of the parameter `name`."""
        return torch.randn(*shape, generator=rng.torch_stream(self.seed, "init", name)) * std

    def uniform(self, name: str, *shape: int, bound: float) -> Tensor:
        """U(-bound, bound) draws of the given shape, from the stream of the parameter `name`."""
        return (torch.rand(*shape, generator=rng.torch_stream(self.seed, "init", name)) * 2 - 1) * bound

    def prompt_init(self, name: str, *shape: int) -> Tensor:
        """VPT's initial prompts: U(-v, v) with v = sqrt(6 / (3 patch^2 + D)) (Jia et al. 2022, official code)."""
        return self.uniform(name, *shape, bound=math.sqrt(6 / (3 * self.patch_size**2 + self.width)))


@dataclass(frozen=True)
class Param:
    """One named tensor of a method and where it lives.

    ``home``: "shared" - clients train copies of it and the server averages them; "local" - a row per client, which stays
    with that client; "server" - kept by the server, sent to clients, which only read it; "server_only" - never sent.
    ``rows``: `init` already has one row per client ([clients, ...]; local only). ``lr_scale`` multiplies the learning rate.
    """

    init: Tensor
    home: Home = "shared"
    trained: bool = True
    lr_scale: float = 1.0
    rows: bool = False

    @property
    def trains(self) -> bool:
        """Whether clients change it by gradient descent."""
        return self.trained and self.home in ("shared", "local")


@dataclass(frozen=True)
class Report:
    """What the K clients of a cohort bring back from one round of local training (all tensors stacked [K, ...])."""

    clients: Tensor  # [K] which clients
    sent: dict[str, Tensor]  # what they started from
    got: dict[str, Tensor]  # what they ended with
    seen: dict[str, Tensor]  # sums made by `observe`
    weight: Tensor  # [K] training samples
    steps: Tensor  # [K] optimiser steps taken
    loss: Tensor  # [K] mean training loss over the client's samples of this round
    lr: float  # learning rate of this round


@dataclass(frozen=True)
class Method:
    """Base of all methods: a frozen backbone and a linear head on the CLS token. Override what differs."""

    logit_prior: Literal["none", "eval", "train", "both"] = option(
        "none", "when to add log pi_k, the client's own log class prior, to the logits: a control for label skew"
    )
    finetune_epochs: int = option(
        0, "epochs each client fine-tunes the final model on its own data before it is evaluated"
    )

    family: ClassVar[str] = "global"
    citation: ClassVar[str] = "ours"
    reference: ClassVar[bool] = False  # True: an upper or lower reference, marked so in the tables
    reads_slots: ClassVar[bool] = False  # whether `logits` or `extra_loss` read out[slot], not out["cls"] alone
    # Names trained in each local phase, one inner tuple a phase; None: one phase that trains everything.
    phases: ClassVar[tuple[tuple[str, ...], ...] | None] = None

    def layers(self, depth: int) -> tuple[int, ...]:
        """The blocks, of a backbone with `depth` blocks, at which `prompts` is called."""
        return ()

    def taps(self, depth: int) -> tuple[int, ...]:
        """The blocks whose entering CLS token `observe` sees."""
        return ()

    @property
    def uses_query(self) -> bool:
        """Whether a hook reads `query`, the prompt-free final CLS feature of the frozen backbone."""
        return False

    @property
    def uses_prior(self) -> bool:
        """Whether a hook reads ``p["prior"]`` [C], the client's own class distribution, which never leaves the client."""
        return False

    def params(self, task: Task) -> dict[str, Param]:
        """Every tensor of the method, by name. Here: the linear head."""
        return linear_head(task)

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The prompt slots that enter block `layer`: ``{slot: [B, P, D]}``; a known slot is replaced, a new one inserted.

        `cls` [B, D] is the CLS token entering this block, `query` [B, D] the prompt-free final CLS feature.
        """
        raise TypeError(f"{type(self).__module__}: a method with layers() must define prompts()")

    def logits(self, p: Values, out: Values) -> Tensor:
        """Class scores [B, C] from ``out["cls"]`` [B, D] and ``out[slot]`` [B, P, D], all after the last norm."""
        return F.linear(out["cls"], p["head.weight"], p["head.bias"])

    # Optional hooks: None means "does nothing", and costs nothing.
    # extra_loss(p, sent, out, query) -> [B] when it is about samples (the core removes padding), or a scalar about parameters
    extra_loss: ClassVar[Any] = None
    # observe(p, taps, query, y, weight) -> {name: sums}; no gradient; the only client hook that sees labels besides the loss
    observe: ClassVar[Any] = None
    # statistics(p, query, y) -> {name: tensor}; query [n, D] and y [n] are all training samples of a client, p what it
    # reads of the server; called once per client, in the round in which it first takes part, before training
    statistics: ClassVar[Any] = None
    # absorb(server, stats) -> {name: value}; stats {name: [K, ...]} of this round's newcomers
    absorb: ClassVar[Any] = None
    # send(server, clients) -> {name: [K, ...]} sent instead of a copy of the server's value
    send: ClassVar[Any] = None
    # merge(server, report) -> {name: value} on top of the n_k-weighted mean (local names: [K, ...] rows)
    merge: ClassVar[Any] = None


def linear_head(task: Task, home: Home = "shared", trained: bool = True) -> dict[str, Param]:
    """A linear classifier, weight [C, D] ~ N(0, 0.02^2), bias [C] = 0."""
    return {
        "head.weight": Param(task.normal("head.weight", task.num_classes, task.width, std=0.02), home, trained),
        "head.bias": Param(torch.zeros(task.num_classes), home, trained),
    }


def tokens(prompt: Tensor, cls: Tensor) -> Tensor:
    """The same prompt [P, D] for every sample of `cls` [B, D]: [B, P, D]."""
    return prompt.expand(len(cls), *prompt.shape)


def log_prior(prior: Tensor, smoothing: float = 1e-6) -> Tensor:
    """log of a class prior [C] mixed with a little uniform mass, so that an absent class stays finite."""
    return torch.log((1 - smoothing) * prior + smoothing / prior.shape[-1])


@dataclass(frozen=True)
class Aggregation:
    """Base of all aggregations: how clients are held together and how the server steps, for any method's parameters.

    An aggregation is a frozen dataclass called ``Aggregation`` in a file of ``methods/aggregation/``. Here: FedAvg, the
    n_k-weighted mean (McMahan et al. 2017).
    """

    citation: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    # extra_loss(p, sent) -> scalar; sent: the shared parameters as the server sent them
    extra_loss: ClassVar[Any] = None

    def params(self, spec: Mapping[str, Param]) -> dict[str, Param]:
        """Tensors of its own, by name; `spec` are the method's."""
        return {}

    def merge(self, server: Values, report: Report, mean: Values) -> dict[str, Tensor]:
        """Values that replace the weighted `mean` of the shared parameters (local names: [K, ...] rows)."""
        return {}
