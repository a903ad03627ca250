"""The clients' local values: one row per client that has changed them, on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedbench.method import Param
from fedbench.run.stacked import Stacked
from fedbench.vit.images import sent_to


class ClientMemory:
    """The local values of `spec`, read and written by client.

    Rows are on the host, one tensor for each client and name. Memory and checkpoints therefore grow with the number of
    clients that took part, not with the population. A client without a row has the initial value, computed on reading.
    """

    def __init__(self, spec: Mapping[str, Param], device: torch.device, dtype: torch.dtype) -> None:
        self.spec = {name: param for name, param in spec.items() if param.home == "local"}
        self.device, self.dtype = device, dtype
        self.rows: dict[str, dict[int, Tensor]] = {name: {} for name in self.spec}

    def read(self, clients: Tensor) -> Stacked:
        """The values {name: [K, ...]} of the clients [K], which are on the host; the values are on the device."""
        return {name: sent_to(self.device, self._read(name, clients)) for name in self.spec}

    def _read(self, name: str, clients: Tensor) -> Tensor:
        rows = self.rows[name]
        new = [i for i, k in enumerate(clients.tolist()) if k not in rows]
        initial = self._initial(name, clients[new])
        if len(new) == len(clients):
            return initial
        values = initial.new_empty(len(clients), *initial.shape[1:])
        values[new] = initial
        for i, k in enumerate(clients.tolist()):
            if k in rows:
                values[i] = rows[k]
        return values

    def _initial(self, name: str, clients: Tensor) -> Tensor:
        param = self.spec[name]
        if param.rows is not None and len(clients):
            values = param.rows(clients)
        else:
            values = param.init.cpu().expand(len(clients), *param.init.shape).clone()
        return values.to(self.dtype) if values.is_floating_point() else values

    def known(self, name: str, clients: Tensor) -> Tensor:
        """Which of the clients [K], which are on the host, have a row: [K] on the device."""
        return sent_to(self.device, np.array([k in self.rows[name] for k in clients.tolist()]))

    def write(self, clients: Tensor, name: str, values: Tensor) -> None:
        """Store the rows `values` [K, ...] of the clients [K], which are on the host."""
        host = values.detach().cpu()
        for k, row in zip(clients.tolist(), host, strict=True):
            self.rows[name][k] = row.clone()  # a view would keep the whole cohort's tensor alive

    def state(self) -> Stacked:
        """All rows, for a checkpoint: ``{client.<name>.<client>: row}``."""
        return {f"client.{name}.{k}": row for name, rows in self.rows.items() for k, row in rows.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError if the checkpoint is from another method."""
        self.rows = {name: {} for name in self.spec}
        for key, row in state.items():
            name, _, client = key.removeprefix("client.").rpartition(".")
            if name not in self.rows:
                raise ValueError(f"the checkpoint holds local values {name!r}, which this run does not have")
            self.rows[name][int(client)] = row
