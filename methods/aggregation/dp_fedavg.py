"""DP-FedAvg: differential privacy of whole clients by clipped changes and Gaussian noise on their mean.

Source: McMahan et al. 2018, arXiv 1710.06963, algorithm 1 with flat clipping (paper): each client scales its change over all
trained shared values to a norm of at most S; the server adds N(0, (z S / m)^2) to the mean change of the m clients, each of
which counts equally. Here the same is done to what clients report once (`statistics`, such as class sums and counts): the
report of a client is scaled to a norm of at most S', and the server's method sees only the sum of the reports of a round, plus
N(0, (z S')^2) on each number (ours).

What the guarantee covers: everything that the server learns of a client's data, if secure aggregation hides single
clients. Values that stay with a client, and the accuracies and losses in the records, are not noised. A method whose own
merge reads clients' updates is refused, since its results would not be noised.

`epsilon` in the records, for `delta` and the rounds so far: the accountant of the package dp-accounting (RDP; m of N clients
without replacement, Wang et al. 2019, arXiv 1808.00087; neighbours replace one client, which doubles the sensitivity).
Reports count as one further release without amplification, as if they had been collected before training.
`epsilon_poisson` is the smaller number that papers often report: as if each client took part with probability m/N in each
round (Mironov et al. 2019, arXiv 1908.10530), and neighbours add or remove one client. Cohorts here are not drawn in that way.
"""

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import Aggregation as Base
from fedbench.method import ClientUpdates, Fidelity, Param, PlannedTask, Task, Values, option, rng


@dataclass(frozen=True)
class Aggregation(Base):
    """Clipped changes, and noise on their mean and on the sum of reports."""

    weighting: Literal["uniform"] = option("uniform", "clients count equally")

    clip: Annotated[float, Field(gt=0)] = option(1.0, "S: largest norm of a client's change", always_shown=True)
    noise: Annotated[float, Field(ge=0)] = option(
        1.0, "z: noise multiplier; 0: clipping alone, and epsilon is null", always_shown=True
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = option(1e-5, "delta for which the records hold epsilon")
    statistics_clip: Annotated[float, Field(gt=0)] = option(1.0, "S': largest norm of what a client reports once")

    citation: ClassVar[str] = "McMahan et al. 2018, arXiv 1710.06963"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    search: ClassVar = {"clip": {"log": (0.03, 3.0)}}
    private: ClassVar[bool] = True

    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """The accountant is installed, and cohorts are drawn as it assumes."""
        clients = run["clients"]
        if clients.get("available") is not None or clients.get("draw", "uniform") != "uniform":
            raise ValueError(
                "epsilon holds for cohorts drawn uniformly from all clients: clients.available and draw: loss do not"
            )
        if self.noise and importlib.util.find_spec("dp_accounting") is None:
            raise ValueError(
                "epsilon needs the package dp-accounting, which is not installed: pip install 'fedbench[privacy]'"
            )

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """The seed of the noise, the number of clients that train, and how many noisy means and sums of reports were made."""
        numbers = {"noise seed": task.seed, "clients": task.num_clients - task.held_out, "means": 0, "reported": 0}
        return {name: Param(torch.tensor(number), "server_only") for name, number in numbers.items()}

    def encode(self, p: Values, received: Values) -> dict[str, Tensor]:
        """Each value with its clipped change."""
        changes = {name: p[name] - x for name, x in received.items()}
        return {name: received[name] + change for name, change in _clipped(changes, self.clip).items()}

    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:
        """The sum over clients of clipped reports, plus noise, as the report of one client [1, ...]."""
        clipped = torch.vmap(lambda report: _clipped(report, self.statistics_clip))(dict(stats))
        total = {name: value.sum(0, keepdim=True) for name, value in clipped.items()}
        noisy = {n: v + self._noise(server, v, self.statistics_clip, "reported", n) for n, v in total.items()}
        return noisy | {"reported": server["reported"] + 1}

    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """The mean over clients, each counting equally, plus noise."""
        if not mean:
            return {}
        cohort = len(updates.clients)
        equal = {name: updates.updated[name].mean(0) for name in mean}
        noisy = {n: v + self._noise(server, v, self.clip / cohort, "means", n) for n, v in equal.items()}
        return noisy | {"means": server["means"] + 1}

    def _noise(self, server: Values, like: Tensor, sensitivity: float, counter: str, name: str) -> Tensor:
        """N(0, (z sensitivity)^2), from a stream of the run's seed, what was made so far, and the value's name."""
        stream = rng.torch_stream(int(server["noise seed"]), "noise", counter, int(server[counter]), name)
        draw = torch.randn(like.shape, generator=stream, dtype=torch.float64)
        return (self.noise * sensitivity * draw).to(like)

    def measures(self, server: Values, run: Mapping[str, Any]) -> dict[str, float | None]:
        """The privacy loss of all rounds so far."""
        if not self.noise:
            return {"epsilon": None, "epsilon_poisson": None}
        cohort, clients = run["clients"]["per_round"], int(server["clients"])
        rounds, reported = int(server["means"]), bool(server["reported"])
        return {
            "epsilon": epsilon(self.noise, cohort, clients, rounds, reported, self.delta, replace=True),
            "epsilon_poisson": epsilon(self.noise, cohort, clients, rounds, reported, self.delta, replace=False),
        }


def _clipped(values: Mapping[str, Tensor], largest: float) -> dict[str, Tensor]:
    """The values {name: [...]}, scaled together to a norm of at most `largest`."""
    if not values:
        return {}
    norm = torch.stack([value.square().sum() for value in values.values()]).sum().sqrt()
    factor = (largest / norm.clamp(min=1e-12)).clamp(max=1)
    return {name: value * factor for name, value in values.items()}


def epsilon(noise: float, cohort: int, clients: int, rounds: int, reported: bool, delta: float, replace: bool) -> float:
    """The epsilon at `delta` of `rounds` rounds with noise multiplier `noise`, and of one report if clients `reported`.

    `replace`: fixed cohorts and neighbours that replace a client; otherwise Poisson sampling, and neighbours that add or
    remove one.
    """
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of each order for which a series does not converge
    relation = dp.NeighboringRelation.REPLACE_ONE if replace else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    step = dp.GaussianDpEvent(noise / 2 if replace else noise)
    sampled = step
    if replace and cohort < clients:
        sampled = dp.SampledWithoutReplacementDpEvent(clients, cohort, step)
    elif cohort < clients:
        sampled = dp.PoissonSampledDpEvent(cohort / clients, step)
    accountant = RdpAccountant(neighboring_relation=relation)
    if rounds:
        accountant.compose(sampled, rounds)
    if reported:
        accountant.compose(step)
    return float(accountant.get_epsilon(delta))
