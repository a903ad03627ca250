"""A named tensor of a method: its initial value, where it lives, and who trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Values = Mapping[str, Tensor]
Taps = Mapping[int | str, Tensor]  # of `observe`: by block, or by name
Home = Literal["shared", "local", "server", "server_only"]
Fidelity = Literal["exact port", "port with named differences", "our reading"]
Phases = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Param:
    """One named tensor of a method and where it lives.

    ``home``: "shared" - clients train copies, which the server averages; "local" - each client keeps a row of its own;
    "server" - the server keeps it and clients only read it; "server_only" - it never leaves the server.
    ``rows``: a function from clients [K] to their initial values [K, ...] (local only); a row depends on its client alone.
    `init` is then the value of an unknown client. ``lr_scale`` multiplies the learning rate.
    ``sent=False``: clients make the starting value of this shared parameter in `choose_by_loss`, so it does not come down.
    ``averaged=False``: the method's `merge` makes the new shared value, perhaps of another shape; it is not averaged and no
    aggregation touches it.
    """

    init: Tensor
    home: Home = "shared"
    trained: bool = True
    lr_scale: float = 1.0
    rows: Callable[[Tensor], Tensor] | None = None
    averaged: bool = True
    sent: bool = True

    @property
    def trains(self) -> bool:
        """Whether clients change it by gradient descent."""
        return self.trained and self.home in ("shared", "local")

    @property
    def aggregated(self) -> bool:
        """Whether the server averages the clients' copies, so that an aggregation acts on it."""
        return self.trained and self.home == "shared" and self.averaged
