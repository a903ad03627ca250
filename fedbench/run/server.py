"""The server's values and the clients' memory: what the server sends and receives, how it merges updates, and the bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedbench.base.record_schema import columns
from fedbench.method import Aggregation, ClientUpdates, HookError, Method, Param, Task
from fedbench.method.hooks import describe
from fedbench.run.client_memory import ClientMemory
from fedbench.run.stacked import ClientMode, Stacked, call_hook, each_client, per_client, weighted_mean
from fedbench.vit.images import sent_to


def parameters(method: Method, aggregation: Aggregation, task: Task) -> dict[str, Param]:
    """Every tensor of a run by name: the method's, the aggregation's, and ``prior`` and ``round`` if a hook reads them.

    ``prior`` [clients, C] is each client's class distribution, ``round`` [] the number of the current round.
    """
    spec = method.params(task)
    spec |= aggregation.params({name: param for name, param in spec.items() if param.averaged}, task)
    if method.needs_prior:
        uniform = torch.full((task.num_classes,), 1 / task.num_classes)
        spec["prior"] = Param(uniform, home="local", trained=False, rows=_prior(task.class_counts))
    if method.uses_round or aggregation.uses_round:
        spec["round"] = Param(torch.zeros(()), home="server", trained=False)
    return spec


def _prior(class_counts: Tensor) -> Callable[[Tensor], Tensor]:
    def rows(clients: Tensor) -> Tensor:
        counts = class_counts[clients].double()
        return (counts / counts.sum(1, keepdim=True)).float()

    return rows


class Server:
    """The global values [...], the clients' memory, and which clients have taken part so far."""

    def __init__(
        self,
        method: Method,
        aggregation: Aggregation,
        spec: Mapping[str, Param],
        clients: int,
        device: torch.device,
        dtype: torch.dtype,
        mode: ClientMode = "stacked",
    ) -> None:
        self.method, self.aggregation, self.spec, self.device, self.mode = method, aggregation, spec, device, mode
        self.values: Stacked = {}
        self.memory = ClientMemory(spec, device, dtype)
        for name, param in spec.items():
            if param.home != "local":
                self.values[name] = param.init.to(device, dtype if param.init.is_floating_point() else None).clone()
        self.has_taken_part = torch.zeros(clients, dtype=torch.bool)
        self.last_loss: Tensor | None = None  # [clients] on the host, if cohorts are drawn by it

    def begin(self, round_: int) -> None:
        """Note the number of the round (from 1) that begins, if a hook reads it."""
        if "round" in self.values:
            self.values["round"] = torch.full_like(self.values["round"], round_)

    def read(self) -> Stacked:
        """The values that clients read and do not change."""
        return {name: self.values[name] for name, param in self.spec.items() if param.home == "server"}

    def send(self, clients: Tensor) -> Stacked:
        """The values that the clients [K] start from, [K, ...]: their own memory and copies of the shared values.

        `clients` is on the host, so that no client number is read back from a GPU.
        Raises HookError if `newcomer` returns something that is not a local value of the declared shape.
        """
        values = self.memory.read(clients)
        for name, param in self.spec.items():
            if param.home == "shared":
                values[name] = self.values[name].expand(len(clients), *self.values[name].shape).clone()
        values |= self.generated(clients)
        return values if self.method.newcomer is None else values | self._newcomers(values, clients)

    def _newcomers(self, values: Stacked, clients: Tensor) -> Stacked:
        """Local values [K, ...]; clients that never took part get what `newcomer` returns."""
        p, hook, made = values | self.read(), self.method.newcomer, {}
        dims = {name: None if self.spec[name].home == "server" else 0 for name in p}
        for name, value in call_hook(hook, lambda: each_client(hook, (p,), (dims,), self.mode)).items():
            if name not in self.memory.spec or value.shape != values[name].shape:
                expected = list(values[name].shape[1:]) if name in self.memory.spec else "no local value"
                raise HookError(f"{describe(hook)}: {name!r} of shape {list(value.shape[1:])}, expected {expected}")
            known = self.memory.known(name, clients)
            made[name] = torch.where(per_client(known, value), values[name], value)
        return made

    def generated(self, clients: Tensor) -> Stacked:
        """{name: [K, ...]} that the method's `send` returns for the clients [K], to replace copies of the server's values.

        `clients` is on the host; the hook receives it on the device.
        """
        hook = self.method.send
        if hook is None:
            return {}
        clients = sent_to(self.device, clients)
        if self.mode == "loop":
            each = [call_hook(hook, lambda k=k: hook(self.values, k)) for k in clients.split(1)]  # type: ignore[misc]
            made = {name: torch.cat([row[name] for row in each]) for name in each[0]}
        else:
            made = call_hook(hook, lambda: hook(self.values, clients))
        return self._declared(hook, made, rows=len(clients), stacked=True)

    def statistics(self, features: Tensor, labels: Tensor) -> Stacked:
        """What one client reports once, from its features [n, D] and labels [n]."""
        hook = self.method.statistics
        made: Stacked = call_hook(hook, lambda: hook(self.read(), features, labels))
        return made

    def absorb(self, stats: Mapping[str, Tensor]) -> None:
        """Pass the statistics {name: [K, ...]} of clients that take part for the first time to the method.

        The aggregation's `absorb` changes them first. Raises HookError.
        """
        if (hook := self.aggregation.absorb) is not None:
            made = call_hook(hook, lambda: hook(self.values, stats))
            self.values |= self._declared(hook, {n: value for n, value in made.items() if n not in stats})
            if missing := stats.keys() - made.keys():
                raise HookError(
                    f"{describe(hook)}: expected {', '.join(stats)}; {', '.join(sorted(missing))} is missing"
                )
            stats = {name: made[name] for name in stats}
        hook = self.method.absorb
        new = self._declared(hook, call_hook(hook, lambda: hook(self.values, stats)))
        self.values |= {name: value.detach() for name, value in new.items()}

    def message(self, updates: ClientUpdates) -> tuple[Stacked, Stacked]:
        """What the clients send for their aggregated values, and local values that they keep, {name: [K, ...]} each.

        ({}, {}) without the aggregation's `encode`, and if nothing is aggregated or sent. Raises HookError.
        """
        hook, received = self.aggregation.encode, self._aggregated(updates.received)
        if hook is None or not received.keys() & updates.updated.keys() or self.method.centralized:
            return {}, {}
        p = updates.updated | self.read()
        dims = {name: 0 if name in updates.updated else None for name in p}
        made = call_hook(hook, lambda: each_client(hook, (p, received), (dims, 0), self.mode))
        if not isinstance(made, dict):
            raise HookError(f"{describe(hook)}: expected {{name: tensor}}, found {type(made).__name__}")
        kept = {name: value for name, value in made.items() if name in self.memory.spec}
        self._declared(hook, kept, len(updates.clients))
        return {name: value for name, value in made.items() if name not in kept}, kept

    def _aggregated(self, values: Stacked) -> Stacked:
        return {name: value for name, value in values.items() if self.spec[name].aggregated}

    def uploaded(self, updates: ClientUpdates) -> ClientUpdates:
        """The updates as the server receives them. Stores the local values that `encode` makes. Raises HookError."""
        message, kept = self.message(updates)
        if not message:
            return updates
        for name, value in kept.items():
            self.memory.write(updates.clients.cpu(), name, value)
        hook: Any = self.aggregation.encode
        values, received = message, self._aggregated(updates.received)
        if self.aggregation.decode is not None:
            hook = self.aggregation.decode
            values = call_hook(hook, lambda: each_client(hook, (message, received), (0, 0), self.mode))
        self._declared(hook, values, len(updates.clients), stacked=True)
        if values.keys() != received.keys():
            raise HookError(f"{describe(hook)}: expected values of {', '.join(received)}; found {', '.join(values)}")
        return replace(updates, updated=updates.updated | values)

    def measures(self, run: Mapping[str, Any]) -> dict[str, float | None]:
        """What the aggregation measures of the rounds so far, {column: number}. Raises HookError if a number is none."""
        hook = self.aggregation.measures
        if hook is None:
            return {}
        made: dict[str, float | None] = call_hook(hook, lambda: hook(self.values, run))
        for name, value in made.items():
            if name in columns() or not (value is None or isinstance(value, int | float)):
                raise HookError(
                    f"{describe(hook)}: expected numbers of columns that no record has, found {name}: {value!r}"
                )
        return made

    def merge(self, updates: ClientUpdates) -> None:
        """Average the uploads, let the method and then the aggregation replace values, and store local rows."""
        updates = replace(self.uploaded(updates), weighting=self.aggregation.weighting)
        updated, spec, count = updates.updated, self.spec, len(updates.clients)
        mean = {name: weighted_mean(value, updates.weight) for name, value in updated.items() if spec[name].aggregated}
        new = mean | {n: v for n, v in updated.items() if spec[n].home == "local" and spec[n].trained}
        if (hook := self.method.merge) is not None:
            new |= self._declared(hook, call_hook(hook, lambda: hook(self.values, updates)), count)
        merge = self.aggregation.merge
        averaged = {name: new[name] for name in mean}
        new |= self._declared(merge, call_hook(merge, lambda: merge(self.values, updates, averaged)), count)
        local = {name: value for name, value in new.items() if spec[name].home == "local"}
        clients = updates.clients.cpu() if local else updates.clients
        for name, value in new.items():
            if name in local:
                self.memory.write(clients, name, value)
            else:
                self.values[name] = value.detach()

    def _declared(self, hook: Any, made: Any, rows: int = 0, stacked: bool = False) -> Stacked:
        """The result `made` of `hook`, checked against params().

        Local values have a row for each of `rows` clients; with `stacked`, all values have one. A value that is not averaged
        may change its shape. Raises HookError.
        """
        if not isinstance(made, dict):
            raise HookError(f"{describe(hook)}: expected {{name: tensor}}, found {type(made).__name__}")
        for name, value in made.items():
            if name not in self.spec:
                raise HookError(f"{describe(hook)}: {name!r} is not one of params(): {', '.join(self.spec)}")
            param = self.spec[name]
            per_row = stacked or param.home == "local"
            free = not (param.home == "local" or param.aggregated)
            expected = ([rows] if per_row else []) + list(param.init.shape)
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if shape != expected and not (free and isinstance(shape, list) and (not per_row or shape[:1] == [rows])):
                raise HookError(f"{describe(hook)}: {name!r} expected {expected}, found {shape}")
        return made

    def bytes_per_client(self) -> tuple[int, int]:
        """Bytes (up, down) of one client's round, without observed sums and statistics; each value at its own size.

        Down: copies of shared values, values that clients read, values that `send` makes and clients train. Up: the trained
        ones among them, as the aggregation's `encode` sends them, and their gradients if the aggregation wants them.
        `bytes_made` counts what else comes down.
        """
        client = torch.zeros(1, dtype=torch.long)
        exchanged = {n: self.values[n] for n, param in self.spec.items() if param.home == "shared"}
        for name, value in self.generated(client).items():
            exchanged.pop(name, None)
            if self.spec[name].trains:
                exchanged[name] = value[0]
        message = self._message_of(client)
        plain = {name: value for name, value in exchanged.items() if self.spec[name].trains}
        if message:
            plain = {name: value for name, value in plain.items() if not self.spec[name].aggregated}
        up = sum(map(nbytes, [*plain.values(), *message.values()]))
        if self.aggregation.wants_gradient:
            up += sum(nbytes(value) for name, value in exchanged.items() if self.spec[name].aggregated)
        exchanged = {name: value for name, value in exchanged.items() if self.spec[name].sent}
        down = sum(map(nbytes, [*exchanged.values(), *self.read().values()]))
        return up, down

    def bytes_made(self, clients: Tensor) -> int:
        """Bytes down of the values that `send` makes for the `clients` [K] and that they do not train.

        Rows of zeros, such as places for prompts that the server does not have, are not sent. `clients` is on the host.
        """
        has_untrained = any(param.home == "shared" and not param.trains for param in self.spec.values())
        made = self.generated(clients) if len(clients) and has_untrained else {}
        return sum(bytes_of_sums(value) for name, value in made.items() if not self.spec[name].trains)

    def _message_of(self, client: Tensor) -> Stacked:
        """What a client that trained nothing would send; its tensors have the shapes and types of every message."""
        if self.aggregation.encode is None:
            return {}
        sent, ones = self.send(client), torch.ones(1)
        return self.message(ClientUpdates(client, sent, sent, {}, ones, ones, ones, lr=0.0))[0]

    def row_bytes(self) -> int:
        """Bytes of one client's values as `send` makes them."""
        values = self.send(torch.zeros(1, dtype=torch.long))
        return sum(value.numel() * value.element_size() for value in values.values())

    def unseen_client(self) -> Stacked | None:
        """The values [1, ...] of a client about which nothing is known: initial local values, a uniform prior.

        None if there is no global model: clients train values of their own, or the method makes values for each client.
        """
        made = self.method.send is not None or self.method.choose_by_loss is not None
        if made or any(param.trains and param.home == "local" for param in self.spec.values()):
            return None
        values = self.send(torch.zeros(1, dtype=torch.long))
        for name, param in self.spec.items():
            if param.home == "local":
                values[name] = sent_to(self.device, param.init.to(values[name].dtype))[None]
        return values

    def state(self) -> Stacked:
        """Everything that survives a round, as one flat mapping for a checkpoint."""
        values = {f"server.{name}": value for name, value in self.values.items()}
        losses = {} if self.last_loss is None else {"last_loss": self.last_loss}
        return values | self.memory.state() | {"introduced": self.has_taken_part} | losses

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError if the checkpoint belongs to another method."""
        rows = {name: value for name, value in state.items() if name.startswith("client.")}
        here = {f"server.{name}" for name in self.values} | {"introduced"}
        here |= {"last_loss"} if self.last_loss is not None else set()
        if other := (state.keys() - rows.keys()) ^ here:
            raise ValueError(f"the checkpoint and this run differ in {sorted(other)[:5]}")
        self.values = {n: state[f"server.{n}"].to(v) for n, v in self.values.items()}
        self.memory.restore(rows)
        self.has_taken_part = state["introduced"].clone()
        if self.last_loss is not None:
            self.last_loss = state["last_loss"].clone()


def nbytes(value: Tensor) -> int:
    """Bytes of a tensor on the wire; floating point is sent in single precision at most."""
    return value.numel() * (min(4, value.element_size()) if value.is_floating_point() else value.element_size())


def bytes_of_sums(value: Tensor) -> int:
    """Bytes that K clients need to send sums [K, rows, ...], such as one row for each class.

    A client leaves out rows of zeros, such as those of classes that it lacks, and sends the other rows with their numbers
    (4 bytes each). It sends all rows without numbers if that takes fewer bytes.
    """
    if value.dim() < 2 or not value.numel():
        return nbytes(value)
    clients, count = value.shape[:2]
    row = nbytes(value) // (clients * count)
    filled = (value.reshape(clients, count, -1) != 0).any(2).sum(1)  # [K]
    return int((filled * (row + 4)).clamp(max=count * row).sum())
