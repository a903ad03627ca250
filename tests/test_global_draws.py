"""A hook that draws from a global random generator is told so by the contract, whatever check meets it first."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fedbench.contract import isolation, rounds, violation
from fedbench.contract.world import Case
from fedbench.method import Aggregation

FEDVPT: Any = type(tiny.METHODS["fedvpt"])
TORCH, NUMPY, PYTHON = (f"it draws from the global random generator of {name}" for name in ("torch", "numpy", "random"))


class NoisyLoss(FEDVPT):
    def extra_loss(self, p: Any, received: Any, out: Any, query: Any) -> torch.Tensor:
        return torch.rand(()) * p["prompt"].square().sum()


class NoisyMerge(Aggregation):
    def merge(self, server: Any, updates: Any, mean: Any) -> Any:
        return {name: value + torch.randn_like(value) for name, value in mean.items()}


class NumpyMerge(Aggregation):
    def merge(self, server: Any, updates: Any, mean: Any) -> Any:
        return {name: value * np.random.rand() for name, value in mean.items()}  # noqa: NPY002


class PythonMerge(Aggregation):
    def merge(self, server: Any, updates: Any, mean: Any) -> Any:
        return {name: value * random.random() for name, value in mean.items()}


@pytest.mark.parametrize(
    ("method", "aggregation", "where", "words"),
    [
        (NoisyLoss(), Aggregation(), "extra_loss", TORCH),
        (FEDVPT(), NoisyMerge(), "a hook of the merge", TORCH),
        (FEDVPT(), NumpyMerge(), "a hook of the merge", NUMPY),
        (FEDVPT(), PythonMerge(), "a hook of the merge", PYTHON),
    ],
)
def test_a_draw_from_a_global_generator_is_named_by_every_check_that_meets_it(method, aggregation, where, words):
    for check in (rounds.loop_equals_stacked, isolation.merge_keeps_clients_apart):
        said = violation(check, Case(method, aggregation)) or ""
        assert words in said, said
        assert where in said.partition("expected")[0], said
        assert "rng.torch_stream" in said
