"""PFPT's matching recomputed: the likelihood by torch's distributions, the assignment by trying all."""

from __future__ import annotations

import itertools
import sys

import tiny
import torch
from oracle import laws
from torch import nn

PFPT = tiny.plugins().classes["method"]["pfpt"]


def plain_match(local: torch.Tensor, loops: int, seed: int, round_: int, code: bool) -> torch.Tensor:
    """The centroids in use after `loops` loops over the clients' prompts [K, n, D]; `code`: as the authors' code has it."""
    clients, n, width = local.shape
    phi = local.reshape(-1, width).clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(laws.seed(seed, "pfpt", round_))
        networks = [nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, out)).double() for out in (width, 1)]
        chosen = [torch.randperm(clients * n)[:n].tolist() for _ in range(clients)]
    spread, used = networks
    optimizer = torch.optim.Adam([phi, *spread.parameters(), *used.parameters()])
    for _, k in itertools.product(range(loops), range(clients)):
        probability = used(phi)[:, 0].sigmoid()
        normal = torch.distributions.Normal(phi, spread(phi).sigmoid())

        in_use = torch.tensor([float(i in chosen[k]) for i in range(len(phi))]).double()
        bernoulli = torch.distributions.Bernoulli(probability).log_prob(in_use)

        def gain(j: int, i: int, k=k, normal=normal, probability=probability, bernoulli=bernoulli) -> torch.Tensor:
            """What it adds to the likelihood that prompt j comes from centroid i instead of from none."""
            density = normal.log_prob(local[k, j])[i].sum()
            if code:
                return density + n * bernoulli[i]
            return density + torch.log(probability[i]) - torch.log(1 - probability[i])

        likelihood = sum(gain(j, i) for j, i in enumerate(chosen[k]))
        if not code:
            likelihood = likelihood + torch.log(1 - probability).sum()
        scores = {(j, i): gain(j, i).item() for j in range(n) for i in range(len(phi))}
        optimizer.zero_grad()
        (-likelihood).backward()
        optimizer.step()
        every = itertools.permutations(range(len(phi)), n)
        chosen[k] = list(max(every, key=lambda way: sum(scores[j, i] for j, i in enumerate(way))))
    return phi.detach()[sorted({i for way in chosen for i in way})]


def test_the_pool_is_that_of_the_likelihood_and_the_best_assignment() -> None:
    match = sys.modules[PFPT.__module__].match
    draw = torch.Generator().manual_seed(3)
    sizes = {False: [], True: []}
    for loops, spread in ((1, 1.0), (6, 0.05), (6, 2.0)):
        local = torch.randn(2, 2, 3, generator=draw, dtype=torch.float64) * spread
        for code in (False, True):
            pool, _ = match(local, loops, 11, 4, code)
            torch.testing.assert_close(pool, plain_match(local, loops, 11, 4, code), rtol=1e-9, atol=1e-10)
            sizes[code].append(len(pool))
    assert sizes[False] != sizes[True]  # the term decides what survives


def test_the_rate_of_the_pool_has_the_factor_and_no_other_has() -> None:
    rates = {name: param.lr_scale for name, param in tiny.mini_run(PFPT(prompt_lr_scale=0.3)).server.spec.items()}
    assert {name for name, scale in rates.items() if scale != 1} == {"pool"}
    assert rates["pool"] == 0.3
