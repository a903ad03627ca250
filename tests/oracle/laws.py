"""The documented laws of a run's inputs in plain NumPy: random streams, splits, cohorts, batches, hashes. No fedbench here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


def seed(*name: int | str) -> int:
    """The first 63 bits of the SHA-256 of the parts' repr, joined by slashes."""
    return int(hashlib.sha256("/".join(map(repr, name)).encode()).hexdigest()[:16], 16) // 2


def stream(*name: int | str) -> np.random.Generator:
    return np.random.default_rng(seed(*name))


def torch_stream(*name: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed(*name))


@dataclass
class Split:
    """Sample numbers of each client, ascending, and which clients are held out."""

    train: list[np.ndarray]
    validation: list[np.ndarray]
    test: list[np.ndarray]
    held_out: np.ndarray

    @property
    def hash(self) -> str:
        """The clients' roles as bits, then each client's count and samples as little-endian 64-bit integers."""
        content = np.packbits(self.held_out).tobytes()
        for parts in (self.train, self.validation, self.test):
            for part in parts:
                content += np.array([len(part), *part], dtype="<i8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def dirichlet_owner(labels, is_test, clients, alpha, draw, balanced=False):
    """The client of each sample: each class is dealt in Dirichlet shares, training and test samples by the same ones."""
    classes = labels.max() + 1
    shares, held = np.zeros((classes, clients)), np.zeros(clients)
    for c in draw.permutation(classes):
        takers = [k for k in range(clients) if not balanced or held[k] < (~is_test).sum() / clients] or range(clients)
        shares[c, takers] = draw.dirichlet([alpha] * len(takers))
        held += shares[c] * (~is_test & (labels == c)).sum()
    owner = np.full(len(labels), -1)
    for c in range(classes):
        order = draw.permutation(clients)
        edges = np.minimum(np.cumsum(shares[c, order]), 1.0)
        edges[-1] = 1.0
        for test in (False, True):
            members = draw.permutation(np.flatnonzero((labels == c) & (is_test == test)))
            start = 0
            for k, edge in zip(order, edges, strict=True):
                stop = int(np.rint(edge * len(members)))
                owner[members[start:stop]] = k
                start = stop
    return owner


def split(labels, is_test, seed_, *, clients, alpha, min_train, held_out, validation, balanced=False) -> Split:
    """Drawn again until each client has `min_train` training samples and a test sample."""
    for draw in range(1000):
        owner = dirichlet_owner(labels, is_test, clients, alpha, stream(seed_, "partition", draw), balanced)
        counts = [[int(((owner == k) & (is_test == test)).sum()) for test in (False, True)] for k in range(clients)]
        if all(train >= min_train and test >= 1 for train, test in counts):
            break
    mixed = stream(seed_, "validation").permutation(np.flatnonzero(~is_test & (owner >= 0)))
    parts = Split([], [], [], np.zeros(clients, dtype=bool))
    for k in range(clients):
        samples = mixed[owner[mixed] == k]
        count = min(max(int(np.rint(validation * len(samples))), 1), len(samples) - 1)
        parts.validation.append(np.sort(samples[:count]))
        parts.train.append(np.sort(samples[count:]))
        parts.test.append(np.flatnonzero(is_test & (owner == k)))
    parts.held_out[stream(seed_, "held_out").permutation(clients)[:held_out]] = True
    return parts


def cohort(seed_: int, held_out: np.ndarray, per_round: int, round_: int) -> np.ndarray:
    eligible = np.flatnonzero(~held_out)
    return np.sort(stream(seed_, "cohort", round_).choice(eligible, per_round, replace=False))


@dataclass
class Batch:
    index: np.ndarray  # [n] samples
    flip: np.ndarray  # [n]
    shift: np.ndarray  # [n, 2] in [-1, 1)


def batches(samples: np.ndarray, size: int, epochs: int, seed_: int, *name: int | str) -> list[Batch]:
    """One client's batches; `name` ends with the client. The draws of an epoch: order, flips, shifts, for full batches."""
    draw, steps, made = stream(seed_, "batches", *name), -(-len(samples) // size), []
    for _ in range(epochs):
        order = draw.permutation(samples)
        flip = draw.random((steps, size)) < 0.5
        shift = (draw.random((steps, size, 2)) * 2 - 1).astype(np.float32)
        for step in range(steps):
            index = order[step * size : (step + 1) * size]
            made.append(Batch(index, flip[step, : len(index)], shift[step, : len(index)]))
    return made


def normal(seed_: int, name: str, *shape: int, std: float) -> torch.Tensor:
    """A parameter's N(0, std^2) draws, in single precision like every initial value."""
    return torch.randn(*shape, generator=torch_stream(seed_, "init", name)) * std


def uniform(seed_: int, name: str, *shape: int, bound: float) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch_stream(seed_, "init", name)) * 2 - 1) * bound


def data_hash(images, labels, is_test) -> str:
    content = repr(images.shape).encode() + labels.tobytes() + is_test.tobytes() + images.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
