"""What is known of a run's task when a sweep is planned, before any data are read or weights loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedTask:
    """The sizes that a plug-in's `check` may compare its options with.

    ``num_classes``, ``train_samples`` and ``test_samples`` are None while the dataset is not prepared. The backbone:
    ``width`` D, ``depth`` L blocks, ``patch_size`` and ``image_size`` in pixels. ``held_out``: clients that never train.
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
