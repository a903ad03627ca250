"""DP-FedAvg: its clipping and noise against numpy, its epsilon against closed forms and published values."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from matplotlib import pyplot
from scipy.special import gammaln

from fedbench.base.records import RunFolder
from fedbench.contract import rounds, violation
from fedbench.contract.world import Case
from fedbench.method import Aggregation, ClientUpdates, HookError, Method, Param, Task, rng
from fedbench.method.fitting import check_private
from fedbench.plan.config import ConfigError
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.report.evidence import gather
from fedbench.report.figures import curves
from fedbench.report.figures.report_figures import all_figures
from fedbench.report.figures.style import looks
from fedbench.report.tables import contests
from fedbench.run.server import Server, parameters
from fedbench.run.simulation import run_rounds

DP = tiny.plugins().classes["aggregation"]["dp_fedavg"]
ORDERS = range(2, 200)


@dataclasses.dataclass(frozen=True)
class Many(Method):
    """A vector and a large matrix that clients share, and a class sum that they report."""

    def params(self, task: Task) -> dict[str, Param]:
        return {
            "x": Param(torch.ones(3)),
            "y": Param(torch.zeros(100, 200)),
            "total": Param(torch.zeros(50, 80), "server"),
        }

    def statistics(self, p: Any, query: Any, y: Any) -> Any:
        return {}

    def absorb(self, server: Any, stats: Any) -> Any:
        return {"total": server["total"] + stats["sum"].sum(0) + stats["count"].sum(0)[:, None]}


def server_of(aggregation: Aggregation, clients: int = 20) -> Server:
    task = Task(2, clients, 4, 1, 4, torch.ones(clients, 2), seed=3)
    return Server(
        Many(), aggregation, parameters(Many(), aggregation, task), clients, torch.device("cpu"), torch.float64
    )


def round_of(server: Server, changes: list[float], round_: int = 1) -> dict[str, np.ndarray]:
    """The changes of the server's values after a round of clients that change every number by `changes`."""
    server.begin(round_)
    who = torch.arange(len(changes))
    sent, ones = server.send(who), torch.ones(len(changes), dtype=torch.float64)
    by = torch.tensor(changes, dtype=torch.float64)
    updated = {name: value + by.view(-1, *[1] * (value.dim() - 1)) for name, value in sent.items()}
    before = {name: server.values[name].clone() for name in ("x", "y")}
    server.merge(ClientUpdates(who, sent, updated, {}, ones + who, ones, ones, 0.1))
    return {name: (server.values[name] - value).numpy() for name, value in before.items()}


def test_changes_are_clipped_over_all_values_together_and_each_client_counts_equally():
    changes, clip, numbers = [0.001, 2.0, -1.0], 3.0, 3 + 100 * 200
    sent = [change * min(1, clip / (abs(change) * math.sqrt(numbers))) for change in changes]
    assert sent[0] == changes[0]
    moved = round_of(server_of(DP(clip=clip, noise=0.0)), changes)
    for value in moved.values():
        assert np.allclose(value, np.mean(sent), rtol=1e-9, atol=1e-15)


def test_the_noise_on_the_mean_is_normal_and_new_in_each_round_and_the_same_for_the_same_seed():
    plain, noisy, again = (server_of(DP(clip=2.0, noise=noise)) for noise in (0.0, 1.5, 1.5))
    seen = []
    for round_ in (1, 2):
        moved = round_of(noisy, [1.0] * 4, round_)["y"]
        assert np.array_equal(moved, round_of(again, [1.0] * 4, round_)["y"])
        seen.append((moved - round_of(plain, [1.0] * 4, round_)["y"]).flatten() / (1.5 * 2.0 / 4))  # z S / m
    for draw in seen:
        assert abs(draw.mean()) < 0.03
        assert draw.std() == pytest.approx(1, abs=0.03)
        assert (draw**4).mean() == pytest.approx(3, abs=0.2)
    assert abs(np.corrcoef(*seen)[0, 1]) < 0.04


def test_reports_are_clipped_summed_and_noised_before_the_method_sees_them():
    stats = {"sum": torch.ones(2, 50, 80, dtype=torch.float64), "count": torch.ones(2, 50, dtype=torch.float64)}
    stats["sum"][1] *= 1e-3
    stats["count"][1] *= 1e-3
    factor = 1 / math.sqrt(50 * 80 + 50)  # the first report is clipped to norm 1, the second is within it
    totals = []
    for noise in (0.0, 0.5):
        server = server_of(DP(noise=noise))
        server.begin(1)
        server.absorb(stats)
        totals.append(server.values["total"].numpy())
        assert server.values["reported"].item() == 1
    assert np.allclose(totals[0], 2 * (factor + 1e-3), rtol=1e-9)
    nothing = server_of(DP(noise=0.5))
    nothing.begin(1)
    nothing.absorb({name: 0 * value for name, value in stats.items()})  # the same noise
    assert np.allclose(totals[1] - nothing.values["total"].numpy(), totals[0], rtol=1e-9)
    (
        draw,
        again,
    ) = (  # z S' times a normal draw of a stream that the seed, the number of the release and the name determine
        torch.randn(shape, generator=rng.torch_stream(3, "noise", "reported", 0, name), dtype=torch.float64)
        for name, shape in (("sum", (1, 50, 80)), ("count", (1, 50)))
    )
    assert np.allclose(nothing.values["total"].numpy(), 0.5 * (draw + again[..., None]).numpy()[0], rtol=1e-9)
    added = totals[1] - totals[0]  # noise of the sum, and of the count, which a whole row shares
    within = added - added.mean(1, keepdims=True)
    assert within.std() == pytest.approx(0.5, abs=0.03)
    assert added.mean(1).std() == pytest.approx(0.5, abs=0.17)


# -- the accountant ---------------------------------------------------------------------------------------------------------


def measured(
    noise: float, cohort: int, clients: int, rounds_: int, reported: bool = False, delta: float = 1e-5
) -> dict:
    server = server_of(DP(noise=noise, delta=delta), clients)
    server.values |= {"means": torch.tensor(rounds_), "reported": torch.tensor(int(reported))}
    return server.measures({"clients": {"per_round": cohort}})


def to_epsilon(rdp: dict[int, float], delta: float) -> float:
    """Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12, over integer orders."""
    return min(r + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a, r in rdp.items())


def log_binomial(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def poisson_rdp(order: int, q: float, z: float) -> float:
    """Mironov, Talwar and Zhang 2019, arXiv 1908.10530, section 3.3: the sum for an integer order."""
    terms = [
        log_binomial(order, k) + (order - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * z**2)
        for k in range(order + 1)
    ]
    return float(np.logaddexp.reduce(terms)) / (order - 1)


def fixed_size_rdp(order: int, q: float, z: float) -> float:
    """Wang, Balle and Kasiviswanathan 2019, arXiv 1808.00087, theorem 9, where epsilon(infinity) is infinite."""
    terms = [
        0.0,
        2 * math.log(q) + log_binomial(order, 2) + min(math.log(4 * math.expm1(1 / z**2)), math.log(2) + 1 / z**2),
    ]
    terms += [
        j * math.log(q) + log_binomial(order, j) + (j - 1) * j / (2 * z**2) + math.log(2) for j in range(3, order + 1)
    ]
    return float(np.logaddexp.reduce(terms)) / (order - 1)


def test_epsilon_of_everybody_in_every_round_is_that_of_the_gaussian_mechanism():
    """Without sampling the RDP of T rounds is T a / (2 z^2); a report is one more release."""
    for noise, rounds_, reported in ((4.0, 3, False), (4.0, 3, True), (2.0, 0, True)):
        releases = rounds_ + reported
        found = measured(noise, 20, 20, rounds_, reported)
        for column, z in (("epsilon", noise / 2), ("epsilon_poisson", noise)):
            by_hand = to_epsilon({a: releases * a / (2 * z**2) for a in ORDERS}, 1e-5)
            assert found[column] == pytest.approx(by_hand, rel=0.02)
            assert found[column] <= by_hand * (1 + 1e-9)  # the package has orders between the integers
    assert measured(1.0, 5, 20, 0) == {
        "epsilon": pytest.approx(0, abs=1e-6),
        "epsilon_poisson": pytest.approx(0, abs=1e-6),
    }


@pytest.mark.parametrize(
    ("noise", "cohort", "clients", "rounds_"), [(1.1, 10, 1000, 100), (4.0, 10, 100, 50), (8.0, 5, 20, 10)]
)
def test_epsilon_of_sampled_cohorts_is_that_of_the_papers_sums(noise, cohort, clients, rounds_):
    found, q = measured(noise, cohort, clients, rounds_), cohort / clients
    poisson = to_epsilon({a: rounds_ * poisson_rdp(a, q, noise) for a in ORDERS}, 1e-5)
    fixed = to_epsilon({a: rounds_ * fixed_size_rdp(a, q, noise / 2) for a in ORDERS}, 1e-5)
    assert found["epsilon_poisson"] == pytest.approx(poisson, rel=0.05)
    assert found["epsilon_poisson"] < found["epsilon"] <= fixed  # the package has the paper's tighter bound, theorem 27


def test_epsilon_of_small_cohorts_is_that_of_the_papers_simpler_bound():
    fixed = to_epsilon({a: 100 * fixed_size_rdp(a, 0.01, 1.1 / 2) for a in ORDERS}, 1e-5)
    assert measured(1.1, 10, 1000, 100)["epsilon"] == pytest.approx(fixed, rel=0.05)


def test_epsilon_is_below_that_of_the_moments_accountant():
    """Abadi et al. 2016, arXiv 1607.00133, section 3.2: q = .01, sigma = 4, 10,000 steps, delta 1e-5 give 1.26."""
    assert 0.8 < measured(4.0, 1, 100, 10_000)["epsilon_poisson"] <= 1.26


# -- what is refused, and what the records hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pep_fedpt-average=class_counts", "fedpr", "central_vpt"])
def test_a_method_that_goes_past_the_noise_is_refused(name):
    with pytest.raises(ValueError, match=r"merge|without clients"):
        check_private(tiny.METHODS[name], DP())
    check_private(tiny.METHODS[name], Aggregation())
    check_private(tiny.METHODS["pep_fedpt"], DP())


def test_reports_that_no_noise_covers_are_refused():
    """An aggregation that calls itself private and has no absorb() gave fedncm's class sums to the server as they are."""

    @dataclasses.dataclass(frozen=True)
    class WithoutAbsorb(Aggregation):
        private = True

    with pytest.raises(ValueError, match=r"statistics\(\).* without noise.*exclude"):
        check_private(tiny.METHODS["fedncm"], WithoutAbsorb())
    check_private(tiny.METHODS["fedncm"], DP())
    check_private(tiny.METHODS["fedvpt"], WithoutAbsorb())


def sweep(folder: Path, method: Any, noise: float = 1.0) -> Any:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "noise.npz", images=images, labels=np.arange(60) % 4, is_test=np.arange(60) >= 40)
    base = {
        "backbone": {"name": "nano_plain"},
        "dataset": {"name": "npz", "path": str(folder / "noise.npz")},
        "partition": {"name": "iid"},
        "method": method,
        "aggregation": {"name": "dp_fedavg", "noise": noise},
        "clients": {"number": 4, "per_round": 2, "validation": 0},
        "rounds": 2,
        "evaluate_every": 1,
    }
    return check_sweep({"base": base, "machine": {"data": str(folder), "device": "cpu"}}, plugins(), where="elsewhere")


def test_cohorts_that_are_not_drawn_uniformly_from_all_clients_are_refused():
    for clients in ({"available": "who.csv"}, {"draw": "loss"}):
        with pytest.raises(ValueError, match="epsilon holds for cohorts drawn uniformly"):
            DP().check(None, {"clients": {"per_round": 2} | clients})


def test_a_mistake_in_a_private_run_gets_one_message(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="central_vpt: a method without clients cannot be private") as raised:
        sweep(tmp_path, "central_vpt")
    assert "1 mistake" in str(raised.value)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "dp_accounting" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"dp_fedavg: epsilon needs the package dp-accounting"):
        sweep(tmp_path, "head_only")


@pytest.mark.slow
def test_records_tables_and_a_figure_hold_epsilon(tmp_path):
    results = tmp_path / "results"
    for method in ("head_only", "fedncm"):
        sweep_ = sweep(tmp_path, method)
        (planned,) = sweep_.runs
        folder = RunFolder(results / planned.name)
        folder.plan(sweep_.on_disk(planned))
        run_rounds(planned, sweep_.machine, sweep_.plugins, folder)
        records = folder.records()
        expected = [measured(1.0, 2, 4, 0, True) if method == "fedncm" else measured(1.0, 2, 4, r) for r in (1, 2)]
        for record, numbers in zip(records, expected, strict=True):
            assert {name: record[name] for name in numbers} == pytest.approx(numbers)
    evidence = gather([], results)
    assert np.isfinite(evidence.records["epsilon"].astype(float)).all()
    finished = evidence.records.assign(state="done", mean_accuracy=[10.0, 20.0, 30.0, 30.0])
    figure, axes = pyplot.subplots()
    curves.spent(axes, finished, "epsilon", looks(sorted(finished["label"].unique()), []))
    lines = {tuple(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert tuple(float(measured(1.0, 2, 4, r)["epsilon"]) for r in (1, 2)) in lines
    pyplot.close(figure)
    names = [s.drawing.name for s in all_figures(evidence, {}, contests.overall(evidence.runs)).sketches]
    assert "privacy" in names


@dataclasses.dataclass(frozen=True)
class Wrong(Aggregation):
    """Its measures have the name of a core column, or are no number."""

    name: str = "round"

    def measures(self, server: Any, run: Any) -> Any:
        return {self.name: 1.0 if self.name == "round" else "text"}


@pytest.mark.parametrize("name", ["round", "budget"])
def test_a_measure_must_be_a_number_of_a_new_column(name):
    with pytest.raises(HookError, match=rf"measures\(\): expected numbers of columns that no record has, found {name}"):
        server_of(Wrong(name=name)).measures({})


def test_the_contract_sees_a_measure_that_is_no_number():
    found = violation(rounds.measures_are_numbers, Case(tiny.METHODS["fedvpt"], Wrong(name="budget")))
    assert "expected numbers of columns that no record has" in (found or "")
    assert violation(rounds.measures_are_numbers, Case(tiny.METHODS["fedvpt"], DP())) is None


@dataclasses.dataclass(frozen=True)
class Forgetful(Aggregation):
    """It drops a statistic."""

    def absorb(self, server: Any, stats: Any) -> Any:
        return {name: value for name, value in stats.items() if name != "count"}


def test_the_contract_sees_statistics_that_do_not_reach_the_method():
    found = violation(rounds.statistics_reach_the_method, Case(tiny.METHODS["fedncm"], Forgetful()))
    assert "count is missing" in (found or "")
    assert violation(rounds.statistics_reach_the_method, Case(tiny.METHODS["fedncm"], DP())) is None
