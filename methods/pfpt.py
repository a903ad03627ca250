"""PFPT: a pool of prompts that the server rebuilds each round, by matching the prompts of the clients' copies.

Source: Weng et al., NeurIPS 2024, arXiv 2502.19752. From the authors' code: the pool's prompts are their own keys. The
query is a trained linear map of the frozen CLS feature, and the nearest prompts by cosine enter at the first block. The
loss is cross entropy plus 0.01 times the sum of their cosines (L2P subtracts it). Map and head are averaged. At the server,
each client's version of each used prompt is a candidate centroid phi_i. The prompts of a client are draws from N(phi_i,
diag s(phi_i)^2) of different centroids, and a client uses each centroid with probability g(phi_i). s and g are small
networks, new every round. The server makes 50 loops of one Adam step and one assignment per client. The centroids in use
are the new pool, so its size changes.

Ours, where the defaults depart from the code. All three change which prompts survive, so a row of these defaults is not the
official form, and its default label says so. The official form is `{choice: batch, bernoulli: code, prompt_lr_scale: 1}`:

* The code gives a whole batch the prompts that most of its samples ask for, also in tests. Here each sample has its own. With
  `choice: batch`, the majority chooses in training; in tests each sample still has its own, so that no prediction depends
  on other samples.
* The code's Bernoulli term is n log Ber(c_i), with c_i of the last assignment, in the loss of used centroids only
  (`bernoulli: code`). g then goes to 1, and its first sign decides how many centroids survive. By default, loss and
  assignment share one objective: the log-likelihood, with g for used and 1 - g for unused centroids. Close versions of one
  prompt merge.
* The code has one learning rate for all. `prompt_lr_scale` multiplies the pool's, by 0.1 by default.

Ours with every choice of fields:

* The output of the code's "covariance" network is a standard deviation, and is used as one here too.
* One linear head, no dropout. Aggregations do not touch the pool. Round t draws from the stream (seed, "pfpt", t).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedbench.method import (
    ClientUpdates,
    Fidelity,
    Param,
    PlannedTask,
    Taps,
    Task,
    Values,
    linear_head,
    only_if,
    option,
    rng,
)
from fedbench.method import Method as Base

HIDDEN = 128  # width of the two networks (code)


@dataclass(frozen=True)
class Method(Base):
    """A pool [n, D] and a linear head; each sample uses the P prompts nearest to its query."""

    pool_size: Annotated[int, Field(ge=1)] = option(20, "n: initial number of prompts in the pool")
    prompt_length: Annotated[int, Field(ge=1)] = option(10, "P: prompts of the pool per sample")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(0.1, "factor on the learning rate of the pool")
    similarity: float = option(
        0.01, "weight of the cosines in the loss; a negative weight pulls prompts towards their queries"
    )
    loops: Annotated[int, Field(ge=1)] = option(50, "passes of the server over the cohort")
    choice: Literal["sample", "batch"] = option(
        "sample", "who chooses prompts in training: each sample, or the majority of a batch for all its samples"
    )
    bernoulli: Literal["likelihood", "code"] = option(
        "likelihood",
        "the term of the centroids' use in the matching: that of the likelihood, or that of the authors' code",
    )

    family: ClassVar[str] = "grouped"
    search: ClassVar = {**Base.search, "prompt_lr_scale": {"log": (0.01, 10.0)}}
    citation: ClassVar[str] = "Weng et al. 2024 (NeurIPS), arXiv 2502.19752"
    fidelity: ClassVar[Fidelity] = "port with named differences"

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """A sample cannot take more prompts than the pool holds."""
        if self.prompt_length > self.pool_size:
            raise ValueError(f"prompt_length {self.prompt_length} is more than pool_size {self.pool_size}")

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block."""
        return (0,)

    @property
    def uses_query(self) -> bool:
        """Prompts are chosen by the prompt-free feature."""
        return True

    @property
    def label_note(self) -> str:
        """Whether the fields give the official form."""
        official = (self.choice, self.bernoulli, self.prompt_lr_scale) == ("batch", "code", 1.0)
        return "" if official else "not the official form"

    def params(self, task: Task) -> dict[str, Param]:
        """pool [n, D], the query's map [D, D], the head, and the seed and number of the round's random stream."""
        start = task.prompt_init("pool", self.pool_size, task.width)
        return {
            "pool": Param(start, lr_scale=self.prompt_lr_scale, averaged=False),
            "map": Param(task.uniform("map", task.width, task.width, bound=1.0)),
            **linear_head(task),
            "seed": Param(torch.tensor(task.seed), "server_only"),
            "round": Param(torch.tensor(0), "server_only"),
        }

    def choose(self, p: Values, query: Tensor) -> tuple[Tensor, Tensor]:
        """The P nearest prompts of each sample, or those of the batch's majority, and their cosines, [B, P] each."""
        cosine = F.normalize(query @ p["map"].T, dim=-1) @ F.normalize(p["pool"], dim=-1).T  # [B, n]
        nearest = cosine.topk(self.prompt_length, -1).indices
        chosen = p["majority"].expand(len(query), -1) if "majority" in p else nearest
        return chosen, cosine.gather(1, chosen)

    @only_if(lambda self: self.choice == "batch")
    def batch_values(self, p: Values, query: Tensor, weight: Tensor, epoch: Tensor) -> dict[str, Tensor]:
        """The P prompts that most samples of the batch choose, [P]; in a tie, those with the lowest numbers."""
        votes = weight @ F.one_hot(self.choose(p, query)[0], len(p["pool"])).to(weight).sum(1)  # [n]
        return {"majority": votes.argsort(descending=True, stable=True)[: self.prompt_length]}

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """Each sample's own prompts [B, P, D]."""
        assert query is not None  # noqa: S101 - uses_query
        return {"prompt": p["pool"][self.choose(p, query)[0]]}

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """0.01 times the sum of the cosines, [B]."""
        return self.similarity * self.choose(p, query)[1].sum(-1)  # [B]

    def observe(self, p: Values, taps: Taps, query: Tensor, y: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """How many samples used each prompt; unused prompts are dropped."""
        hot = F.one_hot(self.choose(p, query)[0], len(p["pool"])).to(weight).sum(1)  # [B, n]
        return {"used": weight @ hot}  # [n]

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The new pool, matched from the prompts that any client used."""
        used = updates.sums["used"].sum(0) > 0
        local = updates.updated["pool"][:, used]  # [K, n, D]
        now = int(server["round"]) + 1
        pool, _ = match(local.double(), self.loops, int(server["seed"]), now, self.bernoulli == "code")
        return {"pool": pool.to(local), "round": torch.full_like(server["round"], now)}


@dataclass(frozen=True)
class Centroids:
    """The candidates phi [M, D], and the networks s (standard deviations) and g (probabilities of use) on them.

    s and g have one hidden layer of H units each; both layers are kept as one, s first, so that one product computes them.
    """

    phi: Tensor  # [M, D]
    hidden_weight: Tensor  # [2 H, D]
    hidden_bias: Tensor  # [2 H]
    s_weight: Tensor  # [D, H]
    s_bias: Tensor  # [D]
    g_weight: Tensor  # [H]
    g_bias: Tensor  # [1]

    @classmethod
    def initial(cls, phi: Tensor) -> "Centroids":
        """`phi` with the networks that torch's default initialisation draws from the global stream."""
        width = phi.shape[1]
        s, s_out, g, g_out = (nn.Linear(*sizes) for out in (width, 1) for sizes in ((width, HIDDEN), (HIDDEN, out)))
        joined = (torch.cat([s.weight, g.weight]), torch.cat([s.bias, g.bias]))
        values = (*joined, s_out.weight, s_out.bias, g_out.weight[0], g_out.bias)
        return cls(phi.clone(), *(value.detach().to(phi) for value in values))

    def tensors(self) -> list[Tensor]:
        """All values, in the order of `gradient`."""
        return [getattr(self, field.name) for field in fields(self)]

    def evaluated(self) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden units [M, 2 H], the standard deviations [M, D] and the logits of use [M]."""
        hidden = torch.addmm(self.hidden_bias, self.phi, self.hidden_weight.T).relu_()
        std = torch.addmm(self.s_bias, hidden[:, :HIDDEN], self.s_weight.T).sigmoid_()
        return hidden, std, torch.addmv(self.g_bias, hidden[:, HIDDEN:], self.g_weight)

    def gradient(self, x: Tensor, z: Tensor, hidden: Tensor, std: Tensor, logit: Tensor, code: bool) -> list[Tensor]:
        """Gradients of minus the log-likelihood of a client whose prompt x[j] is assigned to the centroid z[j].

        That is -sum_j [log N(x_j; phi_i, std_i^2) + logit_i] - sum_i log(1 - g_i), with i = z_j, or with `code`
        -sum_j [log N(x_j; phi_i, std_i^2) + n log g_i]. Only assigned rows (differing from each other) matter to s.
        """
        assigned = std[z]
        away = self.phi[z] - x  # [n, D]
        pull = away / assigned.square()  # the gradient of phi in the density
        free = 1 - away * pull
        of_s = free - free * assigned  # before the sigmoid, [n, D]
        if code:
            of_g = torch.zeros_like(logit).index_copy_(0, z, len(x) * (logit[z].sigmoid() - 1))  # [M]
        else:
            of_g = logit.sigmoid().index_add_(0, z, x.new_ones(len(x)), alpha=-1)  # [M]
        back = torch.zeros_like(hidden)
        back[:, :HIDDEN].index_copy_(0, z, of_s @ self.s_weight)
        torch.mul(of_g[:, None], self.g_weight, out=back[:, HIDDEN:])
        back *= hidden > 0
        return [
            (back @ self.hidden_weight).index_add_(0, z, pull),
            back.T @ self.phi,
            back.sum(0),
            of_s.T @ hidden[z, :HIDDEN],
            of_s.sum(0),
            of_g @ hidden[:, HIDDEN:],
            of_g.sum(0, keepdim=True),
        ]


def match(local: Tensor, loops: int, seed: int, round_: int, code: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Centroids in use [m, D] for the prompts `local` [K, n, D], and each client's assignment [n] to them.

    code: use the Bernoulli term of the authors' code.

    Each loop takes, for each client, one Adam step on its log-likelihood and then the best assignment of its prompts. A step
    starts from the step of the client before, so clients follow each other. The gradient is written out, and Adam is fused
    on a GPU, because a step is hardly more than the time in which its kernels start.
    """
    clients, n = local.shape[:2]
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global stream
        torch.manual_seed(rng.seed(seed, "pfpt", round_))
        centroids = Centroids.initial(local.flatten(0, 1))  # every local prompt is a candidate
        first = [torch.randperm(clients * n)[:n] for _ in range(clients)]
    z = torch.stack(first).to(local.device)  # prompt j of client k: phi[z[k, j]]
    values = centroids.tensors()
    optimizer = torch.optim.Adam([value.requires_grad_() for value in values], fused=local.is_cuda)
    powers = torch.cat([local.square(), -2 * local], -1)  # [K, n, 2 D]
    for _ in range(loops):
        scores = []  # a client's assignment is read in the next loop only, so all are computed together
        for k in range(clients):
            with torch.no_grad():
                hidden, std, logit = centroids.evaluated()
                use = n * log_bernoulli(z[k], logit) if code else logit
                scores.append(gains(powers[k], centroids.phi, std, use))
                gradient = centroids.gradient(local[k], z[k], hidden, std, logit, code)
            for value, grad in zip(values, gradient, strict=True):
                value.grad = grad
            optimizer.step()
        z = assign(torch.stack(scores))
    kept, renamed = torch.unique(z, return_inverse=True)
    return centroids.phi.detach()[kept], list(renamed)


def log_bernoulli(z: Tensor, logit: Tensor) -> Tensor:
    """log Ber(c_i; g_i) [M], where c_i is whether centroid i is assigned in `z` [n], and g the sigmoid of `logit` [M]."""
    used = torch.zeros_like(logit).index_fill_(0, z, 1)
    return F.logsigmoid(torch.where(used > 0, logit, -logit))


def gains(powers: Tensor, phi: Tensor, std: Tensor, use: Tensor) -> Tensor:
    """What assigning prompt x_j to centroid i adds to the objective, [n, M]; `powers` [n, 2 D] is (x^2, -2 x).

    log N(x_j; phi_i, std_i^2) + use_i. With the likelihood, `use` [M] is the logit of g, log g_i - log(1 - g_i).
    """
    w = std**-2  # [M, D]
    scaled = phi * w
    alone = torch.addcmul(w.log(), phi, scaled, value=-1).sum(1) / 2 + use  # what does not depend on x, [M]
    scores = torch.addmm(alone, powers, torch.cat([w, scaled], 1).T, alpha=-0.5)
    return scores - phi.shape[1] / 2 * math.log(2 * math.pi)


def assign(scores: Tensor) -> Tensor:
    """For each client a different centroid for each prompt, [K, n], with the greatest sum of `scores` [K, n, M]."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    columns = [linear_sum_assignment(gain, maximize=True)[1] for gain in scores.cpu().numpy()]
    chosen = torch.from_numpy(np.stack(columns))
    return chosen.pin_memory().to(scores.device, non_blocking=True) if scores.is_cuda else chosen
