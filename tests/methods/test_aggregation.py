"""Aggregations: SCAFFOLD's control variates and the server optimisers, on numbers that can be followed by hand."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from torch import Tensor

from fedbench.method import Aggregation, ClientUpdates, Method, Param, Task, linear_head
from fedbench.run.server import Server, parameters

AGGREGATION, METHOD = (tiny.plugins().classes[kind] for kind in ("aggregation", "method"))
CPU, F64 = torch.device("cpu"), torch.float64


@dataclasses.dataclass(frozen=True)
class One(Method):
    """A method with one shared number, for merges that are written out."""

    def params(self, task: Task) -> dict[str, Param]:
        return {"x": Param(torch.tensor([2.0]))}


def server_of(aggregation: Aggregation, clients: int, held_out: int = 0) -> Server:
    task = Task(2, clients, 4, 1, 4, torch.ones(clients, 2), seed=0, held_out=held_out)
    spec = parameters(One(), aggregation, task)
    return Server(One(), aggregation, spec, clients, CPU, F64)


def kept(server: Server, name: str) -> Tensor:
    """What every client keeps of a local value, [clients, ...]; a single number as [clients]."""
    return server.memory.read(torch.arange(len(server.has_taken_part)))[name].squeeze(-1)


def merge(server: Server, clients: list[int], ends: list[float], gradients: list[float] | None = None) -> None:
    """A round of equally large clients that end at `ends`, whose mean (corrected) gradients were `gradients`."""
    who, count = torch.tensor(clients), len(clients)
    sent = server.send(who)
    ones = torch.ones(count, dtype=F64)
    updated = sent | {"x": torch.tensor(ends, dtype=F64)[:, None]}
    gradient = {} if gradients is None else {"x": torch.tensor(gradients, dtype=F64)[:, None]}
    server.merge(ClientUpdates(who, sent, updated, {}, ones, ones, ones, 0.1, gradient))


# -- weights of the clients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weighting", "mean"), [("samples", 5.5), ("uniform", 5.0)])
def test_clients_weigh_by_their_samples_or_all_alike(weighting: str, mean: float) -> None:
    """Clients of 1 and 3 samples end at 4 and 6: (4 + 3 * 6)/4 = 5.5, or (4 + 6)/2 = 5. FedAvgM halves the step from 2."""
    for name, options, expected in (("fedavg", {}, mean), ("fedavgm", {"lr": 0.5, "beta": 0.0}, 2 + (mean - 2) / 2)):
        server = server_of(AGGREGATION[name](weighting=weighting, **options), 2)
        who, ones = torch.arange(2), torch.ones(2, dtype=F64)
        updated = {"x": torch.tensor([[4.0], [6.0]], dtype=F64)}
        n = torch.tensor([1.0, 3.0], dtype=F64)
        server.merge(ClientUpdates(who, server.send(who), updated, {}, n, ones, ones, 0.1))
        assert server.values["x"].item() == pytest.approx(expected)


def test_a_methods_own_mean_follows_the_weighting() -> None:
    """FedPR's directions are those of the mean: of prompts along axes 0 and 1 with n_k = 1 and 3, axis 1 leads, or neither."""
    updated = {"prompt": torch.eye(2, 4, dtype=F64)[:, None, None, :]}  # [K, L, P, D]
    updates = ClientUpdates(torch.arange(2), {}, updated, {}, torch.tensor([1.0, 3.0]), *[torch.ones(2)] * 2, 0.1)
    method, server = METHOD["fedpr"](prompt_length=1, drop=0.5), {"leading": torch.zeros(1, 1, 4)}
    for weighting, along in (("samples", [0.1**0.5, 0.9**0.5]), ("uniform", [0.5**0.5, 0.5**0.5])):
        leading = method.merge(server, dataclasses.replace(updates, weighting=weighting))["leading"]
        assert leading[0, 0, :2].abs().tolist() == pytest.approx(along)


# -- server optimisers: Reddi et al. 2021, algorithm 2, two rounds in numbers ---------------------------------------------


def test_fedavgm_is_momentum_on_the_mean_change():
    server = server_of(AGGREGATION["fedavgm"](lr=0.5, beta=0.9), 3)
    merge(server, [0, 1], [3.0, 5.0])  # mean 4, Delta 2: v = 2, x = 2 + .5 * 2 = 3
    assert server.values["x"].item() == pytest.approx(3)
    merge(server, [0, 2], [4.0, 4.0])  # Delta 1: v = .9 * 2 + 1 = 2.8, x = 3 + 1.4
    assert server.values["x"].item() == pytest.approx(4.4)


def test_fedavgm_without_momentum_is_fedavg():
    server = server_of(AGGREGATION["fedavgm"](lr=1.0, beta=0.0), 2)
    merge(server, [0, 1], [3.0, 6.0])
    assert server.values["x"].item() == pytest.approx(4.5)


def test_fedadam_in_numbers():
    server = server_of(AGGREGATION["fedadam"](lr=0.1, beta1=0.5, beta2=0.75, tau=0.5), 2)
    merge(server, [0, 1], [3.0, 5.0])
    # Delta = 2: m = .5 * 2 = 1, v = .75 * .25 + .25 * 4 = 1.1875 (it starts at tau^2 = .25)
    x = 2 + 0.1 * 1 / (1.1875**0.5 + 0.5)
    assert server.values["x"].item() == pytest.approx(x)
    merge(server, [0], [x - 1])
    # Delta = -1: m = .5 * 1 - .5 = 0, so x stays; v = .75 * 1.1875 + .25 = 1.140625
    assert server.values["x"].item() == pytest.approx(x)
    assert server.values["v.x"].item() == pytest.approx(1.140625)


def test_fedyogi_in_numbers():
    server = server_of(AGGREGATION["fedyogi"](lr=0.1, beta1=0.5, beta2=0.75, tau=0.5), 2)
    merge(server, [0, 1], [3.0, 5.0])
    # Delta = 2: m = 1; v = .25 is below 4, so it grows by .25 * 4: 1.25
    x = 2 + 0.1 * 1 / (1.25**0.5 + 0.5)
    assert server.values["x"].item() == pytest.approx(x)
    merge(server, [1], [x - 1])
    # Delta = -1: m = 0; v = 1.25 is above 1, so it shrinks by .25 * 1: 1
    assert server.values["x"].item() == pytest.approx(x)
    assert server.values["v.x"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_server_optimiser_costs_no_byte(name):
    plain = tiny.mini_run(tiny.METHODS["fedvpt"]).server
    server = tiny.mini_run(tiny.METHODS["fedvpt"], AGGREGATION[name]()).server
    assert server.bytes_per_client() == plain.bytes_per_client()


def test_a_server_optimiser_steps_towards_what_the_method_merged():
    """pep_fedpt with class_counts merges the class prompts itself: FedAvgM with lr 1 and beta 0 must keep that."""
    method = tiny.METHODS["pep_fedpt-average=class_counts"]
    plain, stepped = (tiny.mini_run(method, a) for a in (None, AGGREGATION["fedavgm"](lr=1.0, beta=0.0)))
    for small in (plain, stepped):
        small.report_statistics(range(tiny.CLIENTS))
        small.server.merge(small.round((0, 2, 4)))
    for name, value in plain.server.values.items():
        assert (value - stepped.server.values[name]).abs().max() < 1e-12, name


# -- SCAFFOLD ----------------------------------------------------------------------------------------------------------


def test_control_variates_in_numbers():
    server = server_of(AGGREGATION["scaffold"](lr=0.5), clients=5, held_out=1)  # N = 4
    merge(server, [0, 1], [1.0, 2.0], gradients=[3.0, -1.0])
    # c_k <- 0 - 0 + g = 3 and -1; c <- 0 + 2/4 * mean(3, -1) = .5; x <- 2 + .5 (1.5 - 2) = 1.75
    assert kept(server, "c_k.x").tolist() == pytest.approx([3, -1, 0, 0, 0])
    assert server.values["c.x"].item() == pytest.approx(0.5)
    assert server.values["x"].item() == pytest.approx(1.75)
    merge(server, [1, 2], [1.75, 1.75], gradients=[0.25, 1.0])
    # c_1 <- -1 - .5 + .25 = -1.25, c_2 <- 0 - .5 + 1 = .5; c <- .5 + 2/4 * mean(-.25, .5) = .5625
    assert kept(server, "c_k.x").tolist() == pytest.approx([3, -1.25, 0.5, 0, 0])
    assert server.values["c.x"].item() == pytest.approx(0.5625)
    # the mean of all control variates is the server's
    assert kept(server, "c_k.x").mean().item() * 5 / 4 == pytest.approx(server.values["c.x"].item())


def test_the_clients_steps_are_corrected_and_option_two_follows():
    """Plain SGD: each client takes its own gradient - c_k + c, and (x - y)/(K lr) is the gradient that it reports."""
    small = tiny.mini_run(
        tiny.METHODS["fedvpt"], AGGREGATION["scaffold"](), momentum=0.0, weight_decay=0.0, clip=None, lr=0.05
    )
    clients = (4, 0, 5, 2)
    small.server.merge(small.round(clients))
    assert small.server.values["c.prompt"].abs().max() > 1e-4
    report = small.round(clients, round_=2)
    for row, steps in enumerate(report.steps.tolist()):
        for name in ("prompt", "head.weight", "head.bias"):
            x, y = report.received[name][row], report.updated[name][row]
            assert (report.gradient[name][row] - (x - y) / (steps * 0.05)).abs().max() < 1e-12

    # One step of the client with one sample, from its gradient without SCAFFOLD: y = x - lr (g - c_k + c).
    plain = tiny.mini_run(tiny.METHODS["fedvpt"], momentum=0.0, weight_decay=0.0, clip=None, lr=0.05, epochs=1)
    one_epoch = small.trainer.local.model_copy(update={"epochs": 1})
    small.trainer = dataclasses.replace(small.trainer, local=one_epoch)
    for name in ("prompt", "head.weight", "head.bias"):
        plain.server.values[name] = small.server.values[name]
    corrected, theirs = small.round([5]), plain.round([5])
    for name in ("prompt", "head.weight", "head.bias"):
        correction = small.server.values[f"c.{name}"] - kept(small.server, f"c_k.{name}")[5]
        assert (corrected.updated[name][0] - (theirs.updated[name][0] - 0.05 * correction)).abs().max() < 1e-12


@dataclasses.dataclass(frozen=True)
class Quadratic(Method):
    """f_k(w) = (a_k/2) (w - b_k)^2, on top of a head that does not learn: clients that pull in different directions."""

    def params(self, task: Task) -> dict[str, Param]:
        curve = torch.tensor([[1.0], [8.0], [1.0], [1.0], [1.0], [1.0]])
        centre = torch.tensor([[-1.0], [1.0], [0.0], [0.0], [0.0], [0.0]])
        zero = torch.zeros(1)
        return linear_head(task, "server") | {
            "w": Param(zero),
            "a": Param(zero, "local", trained=False, rows=curve.__getitem__),
            "b": Param(zero, "local", trained=False, rows=centre.__getitem__),
        }

    def extra_loss(self, p: dict[str, Tensor], sent: object, out: object, query: object) -> Tensor:
        return (p["a"] / 2 * (p["w"] - p["b"]).square()).sum()


@pytest.mark.parametrize(("name", "drifts"), [("fedavg", True), ("scaffold", False), ("feddyn", False)])
def test_drift_of_heterogeneous_clients_is_corrected(name, drifts):
    """Two clients, w in R: f_0 = (w+1)^2/2, f_1 = 4 (w-1)^2, in equal parts. The optimum of their sum solves
    (w+1) + 8 (w-1) = 0: w = 7/9. After K steps of rate lr client k is at b_k + (1 - lr a_k)^K (w - b_k), so FedAvg stands
    still where s_0 (w + 1) + s_1 (w - 1) = 0 with s_k = 1 - (1 - lr a_k)^K; for K = 10, lr = .1: w = .2112.
    """
    options = {"alpha": 2.0} if name == "feddyn" else {}
    small = tiny.mini_run(
        Quadratic(), AGGREGATION[name](**options), momentum=0.0, weight_decay=0.0, clip=None, batch_size=12, epochs=10
    )
    server = small.server
    if name in ("scaffold", "feddyn"):
        server.values["1/N"] = torch.tensor(0.5, dtype=F64)  # of the six clients only two exist here
    for round_ in range(30):
        batches = small.batches((0, 1), round_=round_)
        report = small.round((0, 1), batches=batches)
        server.merge(dataclasses.replace(report, num_samples=torch.ones_like(report.num_samples)))
    assert report.steps.tolist() == [10, 10]
    s0, s1 = 1 - 0.9**10, 1 - 0.2**10
    expected = (s1 - s0) / (s1 + s0) if drifts else 7 / 9
    assert server.values["w"].item() == pytest.approx(expected, abs=1e-4)
    assert abs((s1 - s0) / (s1 + s0) - 0.2112) < 1e-3


def test_scaffold_sends_gradients_up_and_the_servers_variate_down():
    plain = tiny.mini_run(tiny.METHODS["fedvpt"]).server.bytes_per_client()
    up, down = tiny.mini_run(tiny.METHODS["fedvpt"], AGGREGATION["scaffold"]()).server.bytes_per_client()
    assert (up, down) == (2 * plain[0], 2 * plain[1])


@dataclasses.dataclass(frozen=True)
class Phased(Quadratic):
    """w is trained in both phases, v in the second alone; both gradients are constant."""

    phases = (("w",), ("w", "v"))

    def params(self, task: Task) -> dict[str, Param]:
        return linear_head(task, "server") | {"w": Param(torch.zeros(1)), "v": Param(torch.zeros(1))}

    def extra_loss(self, p: dict[str, Tensor], sent: object, out: object, query: object) -> Tensor:
        return (p["w"] * (1.0 if self.phase == 0 else 4.0) + 7 * p["v"]).sum()


def test_mean_gradients_are_over_the_steps_of_all_phases():
    small = tiny.mini_run(Phased(), AGGREGATION["scaffold"](), clip=None)
    report = small.round((0, 2, 5))
    assert report.gradient["w"].flatten().tolist() == pytest.approx([2.5] * 3)  # 1 and 4, as many steps of each
    assert report.gradient["v"].flatten().tolist() == pytest.approx([7.0] * 3)
    small.server.merge(report)
    assert small.server.values["c.w"].item() == pytest.approx(3 / 6 * 2.5)


# -- where there is nothing to aggregate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in AGGREGATION if n != "fedavg"])
def test_clients_that_share_nothing_are_as_under_fedavg(name):
    method = tiny.plugins().classes["method"]["fedvpt"](prompt="local", head="local")
    plain, other = tiny.mini_run(method), tiny.mini_run(method, AGGREGATION[name]())
    for small in (plain, other):
        small.server.merge(small.round((1, 4, 2)))
    for key in plain.server.memory.spec:
        assert torch.equal(kept(plain.server, key), kept(other.server, key))
    assert other.server.bytes_per_client() == (0, 0)


@pytest.mark.parametrize("name", AGGREGATION)
def test_a_method_without_training_runs_with_every_aggregation(name):
    from fedbench.run.local import without_training

    small = tiny.mini_run(tiny.METHODS["fedncm"], AGGREGATION[name]())
    small.report_statistics(range(tiny.CLIENTS))
    who = torch.tensor([1, 2])
    before = small.server.values["prototype"].clone()
    small.server.merge(without_training(who, small.server.send(who), [3, 12], 0.1))
    assert torch.equal(small.server.values["prototype"], before)
