"""The server's values and each client's memory: what is sent, what comes back, how it is merged, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedbench.method import Aggregation, Method, Param, Report, Task
from fedbench.stacked import Stacked, weighted_mean


def parameters(method: Method, aggregation: Aggregation, task: Task) -> dict[str, Param]:
    """Every tensor of a run by name: the method's, the aggregation's, and ``prior``, each client's class distribution
    [clients, C], for a method that uses it."""
    own = method.params(task)
    own |= aggregation.params({name: param for name, param in own.items() if param.averaged})
    if method.uses_prior or method.logit_prior != "none":
        counts = task.class_counts.double()
        own["prior"] = Param((counts / counts.sum(1, keepdim=True)).float(), home="local", trained=False, rows=True)
    return own


class Server:
    """Global values [...], per-client memory [clients, ...], and who has already reported its statistics."""

    def __init__(
        self,
        method: Method,
        aggregation: Aggregation,
        spec: Mapping[str, Param],
        clients: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.method, self.aggregation, self.spec, self.device = method, aggregation, spec, device
        self.values: Stacked = {}
        self.memory: Stacked = {}
        for name, param in spec.items():
            init = param.init.to(device, dtype if param.init.is_floating_point() else None)
            if param.home != "local":
                self.values[name] = init.clone()
            else:
                self.memory[name] = init.clone() if param.rows else init.expand(clients, *init.shape).clone()
        self.introduced = torch.zeros(clients, dtype=torch.bool)

    def read(self) -> Stacked:
        """What clients read and do not change."""
        return {name: self.values[name] for name, param in self.spec.items() if param.home == "server"}

    def send(self, clients: Tensor) -> Stacked:
        """What the clients [K] start from, stacked [K, ...]: their own memory and copies of the shared values."""
        count = len(clients)
        values = {name: value[clients] for name, value in self.memory.items()}
        for name, param in self.spec.items():
            if param.home == "shared":
                values[name] = self.values[name].expand(count, *self.values[name].shape).clone()
        return values | self._made(clients)

    def _made(self, clients: Tensor) -> Stacked:
        return self.method.send(self.values, clients) if self.method.send is not None else {}

    def absorb(self, stats: Mapping[str, Tensor]) -> None:
        """Take in the statistics {name: [K, ...]} of clients that take part for the first time."""
        self.values |= {name: value.detach() for name, value in self.method.absorb(self.values, stats).items()}

    def merge(self, report: Report) -> None:
        """Average what came back by n_k, let the method and then the aggregation replace values, and keep local rows."""
        spec = {name: self.spec[name] for name in report.got}
        mean = {
            name: weighted_mean(value, report.weight) for name, value in report.got.items() if spec[name].aggregated
        }
        new = mean | {n: v for n, v in report.got.items() if spec[n].home == "local" and spec[n].trained}
        if self.method.merge is not None:
            new |= self.method.merge(self.values, report)
        new |= self.aggregation.merge(self.values, report, {name: new[name] for name in mean})
        for name, value in new.items():
            if self.spec[name].home == "local":
                self.memory[name][report.clients] = value.detach()
            else:
                self.values[name] = value.detach()

    def bytes_per_client(self) -> tuple[int, int]:
        """Bytes (up, down) of one client's round, without observed sums and statistics: each value at its own size.

        Down: copies of shared values, what clients read, what `send` makes. Up: of these, what clients train, and their
        gradients where the aggregation wants them.
        """
        one = torch.zeros(1, dtype=torch.long, device=self.device)
        exchanged = {n: self.values[n] for n, param in self.spec.items() if param.home == "shared"}
        exchanged |= {name: value[0] for name, value in self._made(one).items()}
        up = sum(nbytes(value) for name, value in exchanged.items() if self.spec[name].trains)
        if self.aggregation.wants_gradient:
            up += sum(nbytes(value) for name, value in exchanged.items() if self.spec[name].aggregated)
        down = sum(nbytes(value) for value in exchanged.values()) + sum(nbytes(value) for value in self.read().values())
        return up, down

    def stranger(self) -> Stacked | None:
        """The values [1, ...] of a client of which nothing is known: initial local values, a uniform prior.

        None where clients train values of their own: then there is no global model.
        """
        if any(param.trains and param.home == "local" for param in self.spec.values()):
            return None
        values = self.send(torch.zeros(1, dtype=torch.long, device=self.device))
        for name, param in self.spec.items():
            if param.home == "local":  # each client's own
                init = (param.init.mean(0) if param.rows else param.init).to(values[name])
                values[name] = (torch.full_like(init, 1 / len(init)) if name == "prior" else init)[None]
        return values

    def state(self) -> Stacked:
        """Everything that survives a round, flat, for a checkpoint."""
        values = {f"server.{name}": value for name, value in self.values.items()}
        return values | {f"client.{name}": v for name, v in self.memory.items()} | {"introduced": self.introduced}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError where a checkpoint is of another method."""
        here = self.state()
        if state.keys() != here.keys():
            raise ValueError(
                f"the checkpoint holds {sorted(state.keys() ^ here.keys())[:5]} more or less than this run"
            )
        self.values = {n: state[f"server.{n}"].to(v) for n, v in self.values.items()}
        self.memory = {n: state[f"client.{n}"].to(v) for n, v in self.memory.items()}
        self.introduced = state["introduced"].clone()


def nbytes(value: Tensor) -> int:
    """Bytes of a tensor as it would be sent, in single precision where it is floating point."""
    return value.numel() * (4 if value.is_floating_point() else value.element_size())
