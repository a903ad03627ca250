"""Who takes part in a round, and for how many epochs: cohorts, availability, dropouts and stragglers.

Every draw comes from the stream of cohorts, so it does not depend on the method. Cohorts drawn by loss are the exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbench.base import rng
from fedbench.data import DataError, Ints
from fedbench.plan.availability import read_availability
from fedbench.plan.config import RunConfig


@dataclass(frozen=True)
class Participation:
    """The rules of a run. ``eligible``: the clients that are not held out; ``sizes`` [clients]: their training samples."""

    run: RunConfig
    eligible: Ints
    sizes: Ints
    available: Sequence[Ints] = ()  # of each round of the file, if there is one

    def candidates(self, round_: int) -> Ints:
        """The cohort of round `round_` (from 1), or the clients of which losses choose it, in ascending order.

        Fewer than `per_round` if fewer are available. A uniform cohort is drawn without replacement; candidates are drawn in
        proportion to their training samples (Cho, Wang and Joshi 2020, arXiv 2010.01243).
        """
        clients, present = self.run.clients, self.eligible
        if self.available:
            present = np.intersect1d(present, self.available[(round_ - 1) % len(self.available)])
        draw = rng.numpy_stream(self.run.stream("cohort"), "cohort", round_)
        if clients.draw == "uniform":
            return np.sort(draw.choice(present, min(clients.per_round, len(present)), replace=False))
        share = self.sizes[present] / self.sizes[present].sum()
        count = min(clients.candidates or 2 * clients.per_round, len(present))
        return np.sort(draw.choice(present, count, replace=False, p=share))

    def cohort(self, round_: int, losses: NDArray[np.float64] | None = None) -> Ints:
        """The clients to which the server sends values in round `round_`, in ascending order.

        With `draw: loss`, those of the candidates with the largest `losses` [clients], each client's training loss when it
        last took part; infinite for a client that never did.
        """
        candidates = self.candidates(round_)
        if losses is None:
            return candidates
        worst = np.argsort(-losses[candidates], kind="stable")[: self.run.clients.per_round]
        return np.sort(candidates[worst])

    def remaining(self, round_: int, cohort: Ints) -> Ints:
        """The clients of `cohort` that do not drop out; the first of them if all would."""
        if not self.run.clients.dropout:
            return cohort
        draw = rng.numpy_stream(self.run.stream("cohort"), "dropout", round_)
        stays = draw.random(self.run.clients.number)[cohort] >= self.run.clients.dropout
        return cohort[stays] if stays.any() else cohort[:1]

    def epochs(self, round_: int, cohort: Ints) -> Ints:
        """The local epochs of each client of `cohort`; a straggler's are drawn from 1 to one less than `local.epochs`."""
        epochs = self.run.local.epochs
        if not self.run.clients.stragglers:
            return np.full(len(cohort), epochs)
        draw = rng.numpy_stream(self.run.stream("cohort"), "stragglers", round_)
        is_slow = draw.random(self.run.clients.number) < self.run.clients.stragglers
        fewer = draw.integers(1, epochs, self.run.clients.number)
        return np.where(is_slow, fewer, epochs)[cohort]


def participation(run: RunConfig, held_out: NDArray[np.bool_], sizes: Ints) -> Participation:
    """The rules of `run`. Raises DataError if no client that trains is available in a round."""
    eligible, path = np.flatnonzero(~held_out), run.clients.available
    available: Sequence[Ints] = ()
    if path is not None:
        try:
            available = read_availability(path, run.clients.number)
        except (OSError, ValueError) as error:
            raise DataError(f"clients.available: {error}") from error
        for round_, clients in enumerate(available, 1):
            if held_out[clients].all():
                raise DataError(f"clients.available: only held-out clients are available in round {round_} of {path}")
    return Participation(run, eligible, sizes, available)
