"""The rectangular batches that clients train on. They are a pure function of a split and the names of random streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbench.base import rng
from fedbench.data.samples import Ints


@dataclass(frozen=True)
class Batches:
    """One round's local batches of K clients, rectangular: S steps x K clients x B samples; weight 0 marks padding.

    Clients are in descending order of their number of steps, so the clients that train in step s are the first
    ``active[s]``.
    """

    clients: Ints  # [K] the client of each row
    index: Ints  # [S, K, B] sample indices; padding repeats a sample of the same client
    weight: NDArray[np.float32]  # [S, K, B]
    flip: NDArray[np.bool_]  # [S, K, B] for augmentation; also drawn without it, so that random streams do not shift
    shift: NDArray[np.float32]  # [S, K, B, 2] in [-1, 1)
    active: tuple[int, ...]  # [S] number of clients that train in each step
    epochs: Ints  # [K] passes over the client's samples


def batches(
    train: Sequence[Ints], clients: Ints, batch_size: int, epochs: int | Ints, seed: int, *stream: int | str
) -> Batches:
    """Shuffle the samples of each of `clients` [K] `epochs` times and cut batches; `train` holds each client's samples.

    `epochs`: one number for all clients, or [K].

    The random stream of client k is (`seed`, "batches", *`stream`, k), so its batches do not depend on the rest of the
    cohort.
    """
    passes = np.broadcast_to(epochs, len(clients))
    steps = np.array([-(-len(train[k]) // batch_size) for k in clients], dtype=np.int64) * passes
    order = np.argsort(-steps, kind="stable")
    clients, steps, passes = np.asarray(clients)[order], steps[order], passes[order]
    total, count = int(steps.max(initial=0)), len(clients)
    index = np.zeros((total, count, batch_size), dtype=np.int64)
    weight = np.zeros((total, count, batch_size), dtype=np.float32)
    flip = np.zeros((total, count, batch_size), dtype=bool)
    shift = np.zeros((total, count, batch_size, 2), dtype=np.float32)
    for row, k in enumerate(clients):
        draw = rng.numpy_stream(seed, "batches", *stream, int(k))
        own_samples, per_epoch = train[k], int(steps[row]) // int(passes[row])
        for epoch in range(int(passes[row])):
            order_k = np.resize(draw.permutation(own_samples), per_epoch * batch_size)
            steps_of_epoch = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
            index[steps_of_epoch, row] = order_k.reshape(per_epoch, batch_size)
            weight[steps_of_epoch, row] = (np.arange(per_epoch * batch_size) < len(own_samples)).reshape(
                per_epoch, batch_size
            )
            flip[steps_of_epoch, row] = draw.random((per_epoch, batch_size)) < 0.5
            shift[steps_of_epoch, row] = draw.random((per_epoch, batch_size, 2)) * 2 - 1
        index[int(steps[row]) :, row] = own_samples[0]
    active = tuple(int((steps > s).sum()) for s in range(total))
    return Batches(clients, index, weight, flip, shift, active, passes)


def padded(parts: Sequence[Ints]) -> Ints:
    """The parts as rows [K, longest]; sample 0 pads the shorter ones."""
    rows = np.zeros((len(parts), max(map(len, parts))), dtype=np.int64)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows
