"""Robust and normalised aggregations against numpy, SciPy and numbers that can be followed by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from torch import Tensor

from fedbench.method import Aggregation, ClientUpdates, Method, Param, Task, linear_head
from fedbench.run.server import Server, parameters

AGGREGATION = tiny.plugins().classes["aggregation"]
ROBUST = {"median": {}, "trimmed_mean": {"trim": 0.2}, "krum": {}, "krum of 2": {"selected": 2}}


@dataclasses.dataclass(frozen=True)
class Two(Method):
    """A vector and a matrix that clients share."""

    def params(self, task: Task) -> dict[str, Param]:
        return {"x": Param(torch.zeros(7)), "y": Param(torch.zeros(2, 3))}


def server_of(aggregation: Aggregation, clients: int = 10) -> Server:
    task = Task(2, clients, 4, 1, 4, torch.ones(clients, 2), seed=0)
    return Server(Two(), aggregation, parameters(Two(), aggregation, task), clients, torch.device("cpu"), torch.float64)


def merged(server: Server, rows: np.ndarray, sizes: Any = None) -> np.ndarray:
    """The server's 13 numbers after a round of clients that end at `rows` [K, 13]."""
    who = torch.arange(len(rows))
    sent = server.send(who)
    ends = torch.from_numpy(rows)
    ones = torch.ones(len(rows), dtype=torch.float64)
    updated = sent | {"x": ends[:, :7], "y": ends[:, 7:].reshape(-1, 2, 3)}
    n = ones if sizes is None else torch.tensor(sizes, dtype=torch.float64)
    server.merge(ClientUpdates(who, sent, updated, {}, n, ones, ones, 0.1))
    return torch.cat([server.values["x"], server.values["y"].flatten()]).numpy()


def made(name: str) -> Aggregation:
    return AGGREGATION[name.split()[0]](**ROBUST[name])


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_median_is_that_of_numpy(count):
    rows = np.random.default_rng(count).normal(size=(count, 13))
    assert np.allclose(merged(server_of(made("median")), rows), np.median(rows, axis=0), rtol=1e-12)


@pytest.mark.parametrize("count", [5, 10])
def test_the_trimmed_mean_is_that_of_scipy(count):
    rows = np.random.default_rng(count).normal(size=(count, 13))
    assert np.allclose(merged(server_of(made("trimmed_mean")), rows), stats.trim_mean(rows, 0.2), rtol=1e-12)


@pytest.mark.parametrize(("count", "trim", "cut"), [(6, 0.2, 2), (11, 0.1, 2), (4, 0.4, 1), (2, 0.4, 0), (1, 0.4, 0)])
def test_the_trimmed_mean_leaves_out_a_share_rounded_up_but_keeps_a_client(count, trim, cut):
    """The last three cohorts are smaller than the one that was checked, since clients were not available."""
    rows = np.random.default_rng(count).normal(size=(count, 13))
    kept = np.sort(rows, axis=0)[cut : count - cut]
    assert np.allclose(merged(server_of(AGGREGATION["trimmed_mean"](trim=trim)), rows), kept.mean(0), rtol=1e-12)


def krum(rows: np.ndarray, byzantine: int, selected: int) -> np.ndarray:
    """Multi-Krum, one client and one distance at a time."""
    count, scores = len(rows), []
    for i in range(count):
        distances = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(count) if j != i)
        scores.append(sum(distances[: count - byzantine - 2]))
    best = sorted(range(count), key=lambda i: scores[i])[:selected]
    return np.mean([rows[i] for i in best], axis=0)


@pytest.mark.parametrize(("byzantine", "selected"), [(1, 1), (1, 3), (2, 1)])
def test_krum_is_that_of_a_loop_over_clients(byzantine, selected):
    rows = np.random.default_rng(3).normal(size=(8, 13))
    server = server_of(AGGREGATION["krum"](byzantine=byzantine, selected=selected))
    assert np.allclose(merged(server, rows), krum(rows, byzantine, selected), rtol=1e-12)


@pytest.mark.parametrize(("count", "byzantine"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3)])
def test_krum_of_few_available_clients_takes_the_one_with_the_nearest_neighbour(count, byzantine):
    rows = np.random.default_rng(count).normal(size=(count, 13))
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2) + np.where(np.eye(count), np.inf, 0)
    first = int(apart.min(1).argmin()) if count > 1 else 0
    assert np.array_equal(merged(server_of(AGGREGATION["krum"](byzantine=byzantine)), rows), rows[first])


@pytest.mark.parametrize("name", [*ROBUST, "fedavg"])
def test_one_faulty_client_moves_the_mean_and_no_robust_aggregation(name):
    rows = np.random.default_rng(0).normal(size=(6, 13))
    rows[2] = 1e6
    honest = np.delete(rows, 2, axis=0)
    server = server_of(AGGREGATION["fedavg"]() if name == "fedavg" else made(name))
    result = merged(server, rows, sizes=[1, 1, 50, 1, 1, 1])
    inside = ((result >= honest.min(0)) & (result <= honest.max(0))).all()
    assert inside == (name != "fedavg")


@pytest.mark.parametrize(
    ("plugin", "run", "message"),
    [
        (AGGREGATION["trimmed_mean"](trim=0.4), {"clients": {"per_round": 2}}, "leaves out 1 of 2 clients per round at each"),
        (AGGREGATION["krum"](byzantine=2), {"clients": {"per_round": 6}}, r"needs at least 2 f \+ 3 = 7 clients .* found 6"),
        (AGGREGATION["krum"](selected=5), {"clients": {"per_round": 5}}, "leaves out fewer than byzantine 1"),
        (AGGREGATION["fednova"](), {"local": {"optimizer": "adam"}}, "local.optimizer is adam"),
    ],
)  # fmt: skip
def test_a_cohort_or_optimizer_that_does_not_fit_is_refused(plugin, run, message):
    with pytest.raises(ValueError, match=message):
        plugin.check(SimpleNamespace(), run)


@dataclasses.dataclass(frozen=True)
class Graph(Aggregation):
    """What it returns requires gradients."""

    def merge(self, server: Any, updates: Any, mean: Any) -> dict[str, Tensor]:
        return {name: value.clone().requires_grad_() for name, value in mean.items()}


@dataclasses.dataclass(frozen=True)
class Reporting(Two):
    """So does what it makes of reports."""

    def statistics(self, p: Any, features: Any, labels: Any) -> Any:
        return {}

    def absorb(self, server: Any, stats: Any) -> dict[str, Tensor]:
        return {"x": stats["x"].sum(0).requires_grad_()}


def test_the_server_keeps_no_graph_of_what_hooks_return():
    server = server_of(Graph())
    assert merged(server, np.ones((2, 13))).tolist() == [1] * 13
    assert not any(value.requires_grad for value in server.values.values())
    task = Task(2, 3, 4, 1, 4, torch.ones(3, 2), seed=0)
    spec = parameters(Reporting(), Aggregation(), task)
    server = Server(Reporting(), Aggregation(), spec, 3, torch.device("cpu"), torch.float64)
    server.absorb({"x": torch.ones(2, 7, dtype=torch.float64)})
    assert server.values["x"].tolist() == [2] * 7
    assert not server.values["x"].requires_grad


# -- FedNova --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Steady(Method):
    """Client k's gradient with respect to w is k + 1 in every step, on top of a head that does not learn."""

    def params(self, task: Task) -> dict[str, Param]:
        slope = torch.arange(1.0, 7.0)[:, None]
        rows = slope.__getitem__
        return linear_head(task, "server") | {
            "w": Param(torch.ones(1)),
            "slope": Param(torch.zeros(1), "local", trained=False, rows=rows),
        }

    def extra_loss(self, p: dict[str, Tensor], received: object, out: object, query: object) -> Tensor:
        return (p["slope"] * p["w"]).sum()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_moves_along_the_mean_gradient_whatever_the_clients_numbers_of_steps(momentum):
    """A client's change is lr |a_k| g_k, so that x <- x - lr tau_eff sum p_k g_k; |a_k| is summed up step by step here."""
    small = tiny.mini_run(Steady(), AGGREGATION["fednova"](), momentum=momentum, weight_decay=0.0, clip=None, lr=0.1)
    updates = small.round((0, 2, 5))
    n, steps = updates.num_samples.numpy(), updates.steps.numpy().astype(int)
    assert len(set(steps)) > 1
    size = []
    for tau in steps:
        velocity = total = 0.0
        for _ in range(tau):
            velocity = momentum * velocity + 1
            total += velocity
        size.append(total)
    share, gradient = n / n.sum(), updates.clients.numpy() + 1
    assert np.allclose(1 - updates.updated["w"][:, 0].numpy(), 0.1 * np.array(size) * gradient, rtol=1e-9)
    small.server.merge(updates)
    expected = 1 - 0.1 * (share * size).sum() * (share * gradient).sum()
    assert small.server.values["w"].item() == pytest.approx(expected, rel=1e-9)


def test_fednova_of_equally_many_steps_is_fedavg():
    rows, sizes = np.random.default_rng(1).normal(size=(4, 13)), [3, 1, 2, 6]
    plain = merged(server_of(AGGREGATION["fedavg"]()), rows, sizes)
    assert np.allclose(merged(server_of(AGGREGATION["fednova"]()), rows, sizes), plain, rtol=1e-12)


# -- FedDyn ---------------------------------------------------------------------------------------------------------------


def test_feddyn_in_numbers():
    server = server_of(AGGREGATION["feddyn"](alpha=0.5), clients=4)
    first = merged(server, np.stack([np.full(13, 1.0), np.full(13, 3.0)]))
    # from x = 0: g_k = -.5 * (1, 3); h = -.5 / 4 * 4 = -.5; x = 2 + .5 / .5 = 3
    assert np.allclose(first, 3.0)
    kept = server.memory.read(torch.arange(4))
    assert kept["g_k.x"][:, 0].tolist() == pytest.approx([-0.5, -1.5, 0, 0])
    second = merged(server, np.stack([np.full(13, 2.0), np.full(13, 3.0)]))
    # changes -1 and 0: g_0 = -.5 + .5 = 0; h = -.5 + .5 / 4 = -.375; x = 2.5 + .75
    assert np.allclose(second, 3.25)
    kept = server.memory.read(torch.arange(4))
    assert kept["g_k.x"][:, 0].tolist() == pytest.approx([0, -1.5, 0, 0])


def test_feddyn_adds_its_terms_to_a_clients_gradient():
    """One step of a client with one sample: its gradient without FedDyn, minus g_k; at y = x the proximal term has none."""
    options: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "clip": None, "lr": 0.05, "epochs": 1}
    plain = tiny.mini_run(tiny.METHODS["fedvpt"], **options)
    small = tiny.mini_run(tiny.METHODS["fedvpt"], AGGREGATION["feddyn"](alpha=0.3), **options)
    small.server.merge(small.round([5, 1]))
    for name in ("prompt", "head.weight", "head.bias"):
        plain.server.values[name] = small.server.values[name]
    ours, theirs = small.round([5]), plain.round([5])
    assert ours.steps.tolist() == [1]
    for name in ("prompt", "head.weight", "head.bias"):
        g = small.server.memory.read(torch.tensor([5]))[f"g_k.{name}"][0]
        assert g.abs().max() > 1e-6
        assert (ours.updated[name][0] - (theirs.updated[name][0] + 0.05 * g)).abs().max() < 1e-12
