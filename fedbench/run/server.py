"""The server's values and each client's memory: what is sent, what comes back, how it is merged, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedbench.run.client_memory import Memory
from fedbench.method import Aggregation, HookError, Method, Param, Report, Task, told
from fedbench.run.stacked import Stacked, each_client, per_client, weighted_mean


def parameters(method: Method, aggregation: Aggregation, task: Task) -> dict[str, Param]:
    """Every tensor of a run by name: the method's, the aggregation's, and ``prior``, each client's class distribution
    [clients, C], for a method that uses it."""
    own = method.params(task)
    own |= aggregation.params({name: param for name, param in own.items() if param.averaged}, task)
    if method.uses_prior or method.logit_prior != "none":
        uniform = torch.full((task.num_classes,), 1 / task.num_classes)
        own["prior"] = Param(uniform, home="local", trained=False, rows=_prior(task.class_counts))
    return own


def _prior(class_counts: Tensor) -> Callable[[Tensor], Tensor]:
    def rows(clients: Tensor) -> Tensor:
        counts = class_counts[clients].double()
        return (counts / counts.sum(1, keepdim=True)).float()

    return rows


class Server:
    """Global values [...], per-client memory, and who has already reported its statistics."""

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
        self.memory = Memory(spec, device, dtype)
        for name, param in spec.items():
            if param.home != "local":
                self.values[name] = param.init.to(device, dtype if param.init.is_floating_point() else None).clone()
        self.introduced = torch.zeros(clients, dtype=torch.bool)

    def read(self) -> Stacked:
        """What clients read and do not change."""
        return {name: self.values[name] for name, param in self.spec.items() if param.home == "server"}

    def send(self, clients: Tensor) -> Stacked:
        """What the clients [K] start from, stacked [K, ...]: their own memory and copies of the shared values.

        Raises HookError where `newcomer` gives what is no local value of that shape.
        """
        count = len(clients)
        values = self.memory.read(clients)
        for name, param in self.spec.items():
            if param.home == "shared":
                values[name] = self.values[name].expand(count, *self.values[name].shape).clone()
        values |= self._made(clients)
        return values if self.method.newcomer is None else values | self._newcomers(values, clients)

    def _newcomers(self, values: Stacked, clients: Tensor) -> Stacked:
        """Local values [K, ...] of which the rows of clients that never took part are what `newcomer` makes."""
        p, hook, made = values | self.read(), self.method.newcomer, {}
        dims = {name: None if self.spec[name].home == "server" else 0 for name in p}
        for name, value in each_client(hook, (p,), (dims,)).items():
            if name not in self.memory.spec or value.shape != values[name].shape:
                here = list(values[name].shape[1:]) if name in self.memory.spec else "no local value"
                raise HookError(f"{told(hook)}: {name!r} of shape {list(value.shape[1:])}, expected {here}")
            known = self.memory.known(name, clients)
            made[name] = torch.where(per_client(known, value), values[name], value)
        return made

    def _made(self, clients: Tensor) -> Stacked:
        if self.method.send is None:
            return {}
        return self._declared(self.method.send, self.method.send(self.values, clients), rows=len(clients))

    def absorb(self, stats: Mapping[str, Tensor]) -> None:
        """Take in the statistics {name: [K, ...]} of clients that take part for the first time."""
        new = self._declared(self.method.absorb, self.method.absorb(self.values, stats))
        self.values |= {name: value.detach() for name, value in new.items()}

    def merge(self, report: Report) -> None:
        """Average what came back by n_k, let the method and then the aggregation replace values, and keep local rows."""
        spec = {name: self.spec[name] for name in report.got}
        mean = {
            name: weighted_mean(value, report.weight) for name, value in report.got.items() if spec[name].aggregated
        }
        new = mean | {n: v for n, v in report.got.items() if spec[n].home == "local" and spec[n].trained}
        if self.method.merge is not None:
            new |= self._declared(self.method.merge, self.method.merge(self.values, report), len(report.clients))
        more = self.aggregation.merge(self.values, report, {name: new[name] for name in mean})
        new |= self._declared(self.aggregation.merge, more, len(report.clients))
        for name, value in new.items():
            if self.spec[name].home == "local":
                self.memory.write(report.clients, name, value)
            else:
                self.values[name] = value.detach()

    def _declared(self, hook: Any, made: Any, rows: int = 0) -> Stacked:
        """What `hook` made, if it is as params() declares it: local values, and all that is sent, with a row for each of `rows`
        clients. What is not averaged may change its shape. Raises HookError."""
        if not isinstance(made, dict):
            raise HookError(f"{told(hook)}: expected {{name: tensor}}, given {type(made).__name__}")
        for name, value in made.items():
            if name not in self.spec:
                raise HookError(f"{told(hook)}: {name!r} is not one of params(): {', '.join(self.spec)}")
            param, sent = self.spec[name], hook == self.method.send
            stacked = sent or param.home == "local"
            free = not (param.home == "local" or param.aggregated)
            wanted = [rows] * stacked + list(param.init.shape)
            given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if given != wanted and not (free and isinstance(given, list) and (not stacked or given[:1] == [rows])):
                raise HookError(f"{told(hook)}: {name!r} expected {wanted}, given {given}")
        return made

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

    def row_bytes(self) -> int:
        """Bytes of one client's values as `send` makes them."""
        one = self.send(torch.zeros(1, dtype=torch.long, device=self.device))
        return sum(value.numel() * value.element_size() for value in one.values())

    def stranger(self) -> Stacked | None:
        """The values [1, ...] of a client of which nothing is known: initial local values, a uniform prior.

        None where clients train values of their own: then there is no global model.
        """
        if any(param.trains and param.home == "local" for param in self.spec.values()):
            return None
        values = self.send(torch.zeros(1, dtype=torch.long, device=self.device))
        for name, param in self.spec.items():
            if param.home == "local":  # each client's own
                values[name] = param.init.to(values[name])[None]
        return values

    def state(self) -> Stacked:
        """Everything that survives a round, flat, for a checkpoint."""
        values = {f"server.{name}": value for name, value in self.values.items()}
        return values | self.memory.state() | {"introduced": self.introduced}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError where a checkpoint is of another method."""
        rows = {name: value for name, value in state.items() if name.startswith("client.")}
        here = {f"server.{name}" for name in self.values} | {"introduced"}
        if other := (state.keys() - rows.keys()) ^ here:
            raise ValueError(f"the checkpoint holds {sorted(other)[:5]} more or less than this run")
        self.values = {n: state[f"server.{n}"].to(v) for n, v in self.values.items()}
        self.memory.restore(rows)
        self.introduced = state["introduced"].clone()


def nbytes(value: Tensor) -> int:
    """Bytes of a tensor as it would be sent, in single precision where it is floating point."""
    return value.numel() * (4 if value.is_floating_point() else value.element_size())


def bytes_of_sums(value: Tensor) -> int:
    """Bytes in which K clients send sums [K, rows, ...], such as one row a class.

    A row of zeros, of a class that the client lacks, is not sent; the others go with their numbers (4 bytes each), or all
    without numbers where that is less.
    """
    if value.dim() < 2 or not value.numel():
        return nbytes(value)
    clients, count = value.shape[:2]
    row = nbytes(value) // (clients * count)
    filled = (value.reshape(clients, count, -1) != 0).any(2).sum(1)  # [K]
    return int((filled * (row + 4)).clamp(max=count * row).sum())
