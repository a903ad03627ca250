"""PFPT: a pool of prompts that the server draws together from the clients' copies by probabilistic matching.

Source: Weng et al., NeurIPS 2024, arXiv 2502.19752. From the authors' code (code): the pool's prompts are their own keys; a
trained linear map of the frozen CLS feature is the query, the nearest prompts by cosine enter at the first block; loss CE +
0.01 times the sum of their cosines, *added* where L2P subtracts it; map and head averaged. Server: each client's version of
each prompt that somebody used is a candidate centroid phi_i; the prompts of a client are draws from N(phi_i, diag s(phi_i)^2)
of different centroids, each of which a client uses with probability g(phi_i); s and g are small networks, new every round; 50
loops of one Adam step and one assignment per client; centroids in use are the new pool, whose size therefore changes.

What differs (ours). The code gives a batch the prompts that most of its samples ask for, in tests too: here each sample has
its own, so that no prediction depends on its neighbours. The code's Bernoulli term is n log Ber(c_i) with c_i of the last
assignment, for the loss of used centroids alone, so that g goes to 1 and its first sign decides how many centroids survive:
here loss and assignment have one objective, the log-likelihood with g for used and 1 - g for unused centroids, so that close
versions of one prompt merge. The output of the code's "covariance" network is a standard deviation: so it is here. One linear
head; no dropout. No aggregation touches the pool. The draws of round t are of the stream (seed, "pfpt", t).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedbench.method import ClientUpdates, Param, Task, Values, linear_head, option, rng
from fedbench.method import Method as Base

HIDDEN = 128  # width of the two networks (code)


@dataclass(frozen=True)
class Method(Base):
    """A pool [n, D], of which each sample takes the P prompts nearest to its query, and a linear head."""

    pool_size: Annotated[int, Field(ge=1)] = option(20, "n: prompts in the pool at the start")
    prompt_length: Annotated[int, Field(ge=1)] = option(10, "P: prompts of the pool that a sample takes")
    prompt_lr_scale: Annotated[float, Field(gt=0)] = option(0.1, "factor on the learning rate of the pool")
    similarity: float = option(0.01, "weight of the cosines in the loss; negative draws prompts to their queries")
    loops: Annotated[int, Field(ge=1)] = option(50, "loops of the server over the cohort")

    family: ClassVar[str] = "grouped"
    citation: ClassVar[str] = "Weng et al. 2024 (NeurIPS), arXiv 2502.19752"

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block."""
        return (0,)

    @property
    def uses_query(self) -> bool:
        """Prompts are chosen by the prompt-free feature."""
        return True

    def params(self, task: Task) -> dict[str, Param]:
        """pool [n, D], the query's map [D, D], the head, and what the draws of a round depend on. Raises ValueError."""
        if self.prompt_length > self.pool_size:
            raise ValueError(f"pfpt: prompt_length {self.prompt_length} is more than pool_size {self.pool_size}")
        start = task.prompt_init("pool", self.pool_size, task.width)
        return {
            "pool": Param(start, lr_scale=self.prompt_lr_scale, averaged=False),
            "map": Param(task.uniform("map", task.width, task.width, bound=1.0)),
            **linear_head(task),
            "seed": Param(torch.tensor(task.seed), "server_only"),
            "round": Param(torch.tensor(0), "server_only"),
        }

    def choose(self, p: Values, query: Tensor) -> tuple[Tensor, Tensor]:
        """The P nearest prompts of each sample, and their cosines, [B, P] each."""
        cosine = F.normalize(query @ p["map"].T, dim=-1) @ F.normalize(p["pool"], dim=-1).T  # [B, n]
        chosen = cosine.topk(self.prompt_length, -1).indices
        return chosen, cosine.gather(1, chosen)

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """Each sample's own prompts [B, P, D]."""
        assert query is not None  # noqa: S101 - uses_query
        return {"prompt": p["pool"][self.choose(p, query)[0]]}

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """0.01 times the sum of the cosines, [B]."""
        return self.similarity * self.choose(p, query)[1].sum(-1)  # [B]

    def observe(
        self, p: Values, taps: Mapping[int, Tensor], query: Tensor, y: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """How many samples used each prompt: only used prompts go on."""
        hot = F.one_hot(self.choose(p, query)[0], len(p["pool"])).to(weight).sum(1)  # [B, n]
        return {"used": weight @ hot}  # [n]

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The new pool: what matching makes of the prompts that somebody used."""
        used = updates.sums["used"].sum(0) > 0
        local = updates.updated["pool"][:, used]  # [K, n, D]
        now = int(server["round"]) + 1
        pool, _ = match(local.double(), self.loops, int(server["seed"]), now)
        return {"pool": pool.to(local), "round": torch.full_like(server["round"], now)}


def match(local: Tensor, loops: int, seed: int, round_: int) -> tuple[Tensor, list[Tensor]]:
    """Centroids in use [m, D] for the prompts `local` [K, n, D], and each client's assignment [n] to them.

    Alternates one Adam step on the log-likelihood of a client and the assignment of its prompts that maximises it.
    """
    clients, n, width = local.shape
    phi = local.flatten(0, 1).clone().requires_grad_()  # [K n, D]: every local prompt is a candidate
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global stream
        torch.manual_seed(rng.seed(seed, "pfpt", round_))
        s, g = (_network(width, out).to(local) for out in (width, 1))
        z = [
            torch.randperm(len(phi))[:n].to(local.device) for _ in range(clients)
        ]  # prompt j of client k: phi[z[k][j]]
    optimizer = torch.optim.Adam([phi, *s.parameters(), *g.parameters()])
    for _ in range(loops):
        for k in range(clients):
            scores, unused = log_likelihood(local[k], phi, s(phi).sigmoid(), g(phi)[:, 0])
            loss = -(scores.gather(1, z[k][:, None]).sum() + unused)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            z[k] = assign(scores.detach())
    kept, renamed = torch.unique(torch.stack(z), return_inverse=True)
    return phi.detach()[kept], list(renamed)


def log_likelihood(x: Tensor, phi: Tensor, std: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    """What it adds to assign prompt j of x [n, D] to centroid i [n, M], and the log-likelihood of using no centroid.

    log N(x_j; phi_i, std_i^2) + log g_i - log(1 - g_i), and sum_i log(1 - g_i), with g the sigmoid of `logit` [M].
    """
    w = std**-2  # [M, D]
    squares = x.square() @ w.T - 2 * x @ (phi * w).T + (phi.square() * w).sum(1)  # [n, M]
    normal = -squares / 2 - std.log().sum(1) - phi.shape[1] / 2 * math.log(2 * math.pi)
    return normal + logit, F.logsigmoid(-logit).sum()


def assign(scores: Tensor) -> Tensor:
    """The centroid [n] of each prompt, no two alike, with the greatest sum of scores [n, M]."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and needed here alone

    return torch.as_tensor(linear_sum_assignment(scores.cpu().numpy(), maximize=True)[1], device=scores.device)


def _network(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out))
