"""The base of aggregations whose clients compress the change of their values before they send it.

Source of the error feedback: Seide et al. 2014, Interspeech; Stich et al. 2018, arXiv 1809.07599, algorithm 1 (paper): a client
adds what compression has left out so far to its next change, so that nothing is lost for good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.base.options import option
from fedbench.method.aggregation import Aggregation
from fedbench.method.param import Param, Values
from fedbench.method.task import Task


@dataclass(frozen=True)
class CompressedUploads(Aggregation, ABC):
    """Base of compressed uploads. Define `compress` and `expand`. The server averages what it receives as FedAvg does."""

    error_feedback: bool = option(True, "clients keep what compression leaves out, and add it to their next change")

    @abstractmethod
    def compress(self, change: Tensor) -> dict[str, Tensor]:
        """{part: tensor} that a client sends for the change [n] of a value with n numbers."""

    @abstractmethod
    def expand(self, parts: Values, like: Tensor) -> Tensor:
        """The change [n] that the server reads from the `parts` of `compress`; `like` [n] has its type."""

    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """``residual.<name>``: what compression has left out of each aggregated value so far. It stays with the client."""
        names = [name for name, param in spec.items() if param.aggregated and self.error_feedback]
        return {f"residual.{n}": Param(torch.zeros_like(spec[n].init), "local", trained=False) for n in names}

    def encode(self, p: Values, received: Values) -> dict[str, Tensor]:
        """The parts of each value's change as ``<name>.<part>``, and the new residuals."""
        message: dict[str, Tensor] = {}
        for name, x in received.items():
            change = p[name] - x
            if self.error_feedback:
                change = change + p[f"residual.{name}"]
            parts = self.compress(change.flatten())
            message |= {f"{name}.{part}": value for part, value in parts.items()}
            if self.error_feedback:
                message[f"residual.{name}"] = change - self.expand(parts, change.flatten()).view_as(change)
        return message

    def decode(self, message: Values, received: Values) -> dict[str, Tensor]:
        """Each value as the server sent it, plus the change that its parts hold."""
        values = {}
        for name, x in received.items():
            parts = {
                key.removeprefix(f"{name}."): part for key, part in message.items() if key.rpartition(".")[0] == name
            }
            values[name] = x + self.expand(parts, x.flatten()).view_as(x)
        return values
