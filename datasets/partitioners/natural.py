"""Natural clients: the people who took the pictures, from the dataset's user column.

Hsu, Qi and Brown 2020, "Federated Visual Classification with Real-World Data Distribution" (arXiv:2003.08082): a client is
an iNaturalist or Landmarks user, or a place on the map (paper). Their test images have no user; `test: own` then holds out
a part of each client's own images, and the official test set measures the global model alone (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedbench import data
from fedbench.data import option


@dataclass(frozen=True)
class Partitioner(data.Partitioner):
    """A client is one or several users. Users with too few samples to train and test are left out."""

    citation: ClassVar[str] = "Hsu et al. 2020, arXiv:2003.08082"
    users: Literal["each", "draw", "merge"] = option(
        "each",
        "each: one client per user, so clients.number must be the number of users; draw: so many random users, the others "
        "are left out; merge: each client is several random users",
    )

    def groups(self, samples: data.Samples) -> data.Ints:
        """The user of every sample, -1 for none. Raises DataError without users."""
        if samples.user is None:
            raise data.DataError(
                "impossible split: the dataset has no users, which the natural partitioner needs; take another partition"
            )
        return samples.user

    def assign(self, samples: data.Samples, clients: int, stream: np.random.Generator) -> data.Ints:
        """The client of every sample [N] (-1: of no user, or of one that is no client). Raises DataError."""
        user, known = self.groups(samples), self.groups(samples) >= 0
        names, number = np.unique(user[known], return_inverse=True)
        train, test = (
            np.bincount(number[samples.is_test[known] == part], minlength=len(names)) for part in (False, True)
        )
        if self.test == "official" and not test.any():
            raise data.DataError(
                "impossible split: no test sample has a user, so clients have no test samples of their own; set the "
                "partition's test: own (a part of each client's training samples is held out, the official test set "
                "is for the global model) or test: merged (training and test samples merged, each client cut)"
            )
        if self.test != "official":
            test = data.cut(train, self.test_share)
            train = train - test
        fit = np.flatnonzero((train >= self.min_train) & (test > 0))
        client = np.full(len(names), -1, dtype=np.int64)
        client[fit] = self._clients(len(fit), len(names), clients, stream)
        owner = np.full(len(user), -1, dtype=np.int64)
        owner[known] = client[number]
        return owner

    def _clients(self, fit: int, users: int, clients: int, stream: np.random.Generator) -> data.Ints:
        """The client of each of the `fit` users that can be one."""
        reason = (
            f"clients.number is {clients}, but {fit} of the dataset's {users} users have enough samples to be a client"
        )
        if clients > fit:
            needed = f"a client needs {self.min_train} training samples (min_train) and a test sample"
            advice = f"set clients.number to {fit} or less" if fit else needed
            raise data.DataError(f"impossible split: {reason}; {advice}")
        if clients == fit:
            return np.arange(fit)
        if self.users == "each":
            raise data.DataError(
                f"impossible split: {reason}; set clients.number to {fit}, or the partition's users: draw ({clients} random "
                f"users, the others are left out) or users: merge (every client is several users)"
            )
        if self.users == "merge":
            return stream.permutation(np.arange(fit) % clients)
        drawn = np.full(fit, -1, dtype=np.int64)
        drawn[np.sort(stream.choice(fit, clients, replace=False))] = np.arange(clients)
        return drawn
