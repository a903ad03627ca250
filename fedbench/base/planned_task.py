"""The sizes of a run's task that are known when a sweep is planned, before data are read or weights loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedTask:
    """The sizes with which a plug-in's `check` can compare its options.

    ``num_classes``, ``train_samples`` and ``test_samples`` are None while the dataset is not prepared. ``width`` D,
    ``depth`` L blocks, ``patch_size`` and ``image_size`` in pixels describe the backbone. ``held_out``: clients that never
    train.
    """

    num_clients: int
    held_out: int
    width: int
    depth: int
    patch_size: int
    image_size: int
    num_classes: int | None = None
    train_samples: int | None = None
    test_samples: int | None = None
