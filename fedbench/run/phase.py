"""The local phases of training, and the pieces of their steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedbench.run.stacked_model import StackedModel


@dataclass(frozen=True)
class Phase:
    """A local phase: the names that it trains, and the model in this phase's main pass and in its views."""

    names: list[str]
    model: StackedModel
    views: dict[str, StackedModel]


@dataclass(frozen=True)
class Piece:
    """Samples of one step [K, B]: their indices, weights (0: padding) and draws for the augmentation.

    ``first``: whether it is the first piece of a step. Only this piece counts loss terms about parameters alone.
    """

    index: Tensor
    weight: Tensor
    flip: Tensor
    shift: Tensor
    first: bool
