"""The method contract: a federated prompt tuning method is a few small hooks, written for one client.

Legend used everywhere: K clients, B samples, C classes, P prompts, D width, L blocks, N images.

A method is a frozen dataclass called ``Method`` in a file of ``methods/``; its fields are its hyper-parameters and the
YAML block is its keyword arguments. The core maps the hooks over clients, so no hook ever sees a client axis except
`send`, `absorb` and `merge`, which run on the server.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench import rng

Values = Mapping[str, Tensor]
Home = Literal["shared", "local", "server", "server_only"]
Phases = tuple[tuple[str, ...], ...]


class HookError(TypeError):
    """A hook of a plug-in that breaks the contract: names the file, the hook, what was expected and what was given."""


def option(default: Any, meaning: str, **metadata: Any) -> Any:
    """A dataclass field with its meaning, which the listings and the reference pages print.

    ``told=True``: tables name its value even where it is the default.
    """
    return field(default=default, metadata={"meaning": meaning, **metadata})


@dataclass(frozen=True)
class Task:
    """What a method may know about the task before it starts.

    ``class_counts`` [clients, C] are the label histograms of the clients' training parts; ``frozen`` the backbone's tensors
    by name. Initial weights are drawn from streams named by the parameter, so methods that share a parameter's name, shape
    and law start from the same values.
    """

    num_classes: int
    num_clients: int
    width: int
    depth: int
    patch_size: int
    class_counts: Tensor
    seed: int
    image_size: int = 0
    frozen: Values = field(default_factory=dict)
    held_out: int = 0  # clients of these that never train

    def normal(self, name: str, *shape: int, std: float) -> Tensor:
        """N(0, std^2) draws of the given shape, from the stream of the parameter `name`."""
        return torch.randn(*shape, generator=rng.torch_stream(self.seed, "init", name)) * std

    def uniform(self, name: str, *shape: int, bound: float) -> Tensor:
        """U(-bound, bound) draws of the given shape, from the stream of the parameter `name`."""
        return (torch.rand(*shape, generator=rng.torch_stream(self.seed, "init", name)) * 2 - 1) * bound

    def own_normal(self, name: str, *shape: int, std: float) -> Callable[[Tensor], Tensor]:
        """The same for a parameter of which each client draws its own: the clients [K] -> [K, *shape], for `Param.rows`."""

        def rows(clients: Tensor) -> Tensor:
            values = torch.empty(len(clients), *shape)
            for row, k in zip(values, clients.tolist(), strict=True):
                row.normal_(std=std, generator=rng.torch_stream(self.seed, "init", name, k))
            return values

        return rows

    def prompt_init(self, name: str, *shape: int) -> Tensor:
        """VPT's initial prompts: U(-v, v) with v = sqrt(6 / (3 patch^2 + D)) (Jia et al. 2022, official code)."""
        return self.uniform(name, *shape, bound=math.sqrt(6 / (3 * self.patch_size**2 + self.width)))


@dataclass(frozen=True)
class Param:
    """One named tensor of a method and where it lives.

    ``home``: "shared" - clients train copies of it and the server averages them; "local" - a row per client, which stays
    with that client; "server" - kept by the server, sent to clients, which only read it; "server_only" - never sent.
    ``rows``: the clients [K] -> [K, ...] that they start from, a row a function of its client alone (local only); `init` is
    then what a client of which nothing is known has. ``lr_scale`` multiplies the learning rate. ``averaged=False``: a shared
    value that the method's `merge` makes anew, perhaps of another shape; it is not averaged, and no aggregation touches it.
    """

    init: Tensor
    home: Home = "shared"
    trained: bool = True
    lr_scale: float = 1.0
    rows: Callable[[Tensor], Tensor] | None = None
    averaged: bool = True

    @property
    def trains(self) -> bool:
        """Whether clients change it by gradient descent."""
        return self.trained and self.home in ("shared", "local")

    @property
    def aggregated(self) -> bool:
        """Whether the server averages what clients made of it, and an aggregation steps on it."""
        return self.trained and self.home == "shared" and self.averaged


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
    gradient: dict[str, Tensor] = field(
        default_factory=dict
    )  # mean over a client's steps, where an aggregation wants it


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
    # What a sweep's `tune:` looks for, by field or dotted path of the run: {"log": (low, high)}, {"linear": (low, high)} or
    # {"choice": (a, b, ...)}; a method that trains nothing has nothing to look for.
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {"local.lr": {"log": (0.001, 1.0)}}
    pooled: ClassVar[bool] = False  # True: no clients, the same number of samples a round drawn from all their data
    # Names trained in each local phase, one inner tuple a phase; None: one phase that trains everything. A phase takes
    # `local.epochs` epochs.
    phases: ClassVar[Phases | None] = None
    # The same for fine-tuning before evaluation; None: as in training. May name values that federated training leaves alone.
    finetune_phases: ClassVar[Phases | None] = None
    # Further passes in training, by name: their CLS feature is out["<name>.cls"] of `extra_loss`.
    views: ClassVar[tuple[str, ...]] = ()
    # What the hooks may ask: the local phase and the view they are called in; None in evaluation and in the main pass.
    phase: ClassVar[int | None] = None
    view: ClassVar[str | None] = None

    def at(self, phase: int | None = None, view: str | None = None) -> Self:
        """The method as it is in a local phase and a view."""
        made = copy.copy(self)
        object.__setattr__(made, "phase", phase)
        object.__setattr__(made, "view", view)
        return made

    def touches(self, depth: int) -> bool:
        """Whether anything enters a backbone with `depth` blocks; where nothing does, its cached features serve."""
        return bool(
            self.layers(depth) or self.taps(depth) or self.pixels is not None or self.backbone_weights is not None
        )

    def reads_features(self, depth: int) -> bool:
        """Whether the prompt-free features are needed: by a hook, or in place of a backbone with `depth` blocks."""
        return self.uses_query or self.statistics is not None or not self.touches(depth)

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
    # pixels(p, images) -> images; the normalised images [B, 3, S, S] that enter the backbone
    pixels: ClassVar[Any] = None
    # backbone_weights(p, frozen) -> {name: tensor} that take the place of the backbone's tensors `frozen` {name: tensor};
    # each client then has a pass of its own, so this is slow
    backbone_weights: ClassVar[Any] = None
    # steer(p, step) -> {name: tensor}; a map of the optimiser's step {name: ...}, before it is taken
    steer: ClassVar[Any] = None
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
    # newcomer(p) -> {local name: value} with which a client that never took part starts, made from what it is sent
    newcomer: ClassVar[Any] = None
    # merge(server, report) -> {name: value} on top of the n_k-weighted mean (local names: [K, ...] rows); what it says of
    # shared values is where the aggregation steps to
    merge: ClassVar[Any] = None


@dataclass(frozen=True)
class InputPrompt(Method):
    """A method with P prompt tokens after CLS at the input of the first block, the same for every sample: VPT-shallow.

    Source: Jia et al. 2022, arXiv 2203.12119, equation 4.
    """

    prompt_length: Annotated[int, Field(ge=1)] = option(8, "P: prompt tokens at the input of the first block")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(1.0, "factor on the learning rate of the prompts")

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block."""
        return (0,)

    def prompt_param(self, task: Task, home: Home = "shared") -> dict[str, Param]:
        """prompt [P, D] with its initial values."""
        start = task.prompt_init("prompt", self.prompt_length, task.width)
        return {"prompt": Param(start, home, lr_scale=self.prompt_lr_scale)}

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The same tokens for every sample."""
        return {"prompt": tokens(p["prompt"], cls)}


def trained_in(method: Method, spec: Mapping[str, Param], finetuning: bool = False) -> list[list[str]]:
    """The names that each local phase trains; no phase for a method without training.

    Raises HookError where a phase names no parameter, or where no phase trains a parameter that is declared as trained.
    """
    own = method.finetune_phases if finetuning else None
    names = [n for n, p in spec.items() if p.trains or (own and p.home in ("shared", "local"))]
    if (parts := own or method.phases) is None:
        return [names] if names else []
    found = [[n for n in names if any(n == part or n.startswith(part + ".") for part in phase)] for phase in parts]
    idle = [n for n in names if not own and not any(n in phase for phase in found)]
    if idle or [] in found:
        raise HookError(
            f"{told(method.params).partition(':')[0]}: phases are {parts}, but params() declares the trained values "
            f"{names}; " + (f"no phase trains {idle}" if idle else "a phase trains none of them")
        )
    return found


def told(hook: Any) -> str:
    """``file: hook()`` of a plug-in's bound method, for messages."""
    owner = type(getattr(hook, "__self__", hook))
    file = getattr(sys.modules.get(owner.__module__), "__file__", None) or owner.__module__
    return f"{file}: {getattr(hook, '__name__', '?').lstrip('_')}()"


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


def class_sums(z: Tensor, y: Tensor, weight: Tensor, classes: int) -> dict[str, Tensor]:
    """Weighted sums [C, D] and counts [C] of z [B, D] by class."""
    hot = F.one_hot(y, classes).to(z) * weight[:, None]
    return {"sum": hot.T @ z, "count": hot.sum(0)}


@dataclass(frozen=True)
class Aggregation:
    """Base of all aggregations: how clients are held together and how the server steps, for any method's parameters.

    An aggregation is a frozen dataclass called ``Aggregation`` in a file of ``methods/aggregation/``. Here: FedAvg, the
    n_k-weighted mean (McMahan et al. 2017).
    """

    citation: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {}  # as of a method
    # extra_loss(p, sent) -> scalar; sent: the trained shared parameters as the server sent them; not called where a method
    # has none
    extra_loss: ClassVar[Any] = None
    wants_gradient: ClassVar[bool] = False  # clients send the mean of their gradients as well: ``report.gradient``

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """Tensors of its own, by name; `spec` are the method's. Clients read what is "server" or "local", as `p`."""
        return {}

    def merge(self, server: Values, report: Report, mean: Values) -> dict[str, Tensor]:
        """Values that replace `mean`, {name: value} of the trained shared parameters as averaged, or as the method has
        merged them (local names: [K, ...] rows)."""
        return {}
