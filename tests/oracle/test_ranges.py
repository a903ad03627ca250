"""Invalid ranges of a search are refused wherever they were written, and valid ranges are accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedbench.plan.config import ConfigError
from fedbench.plan.search_space import check_range

ILLEGAL: list[tuple[dict[str, tuple[Any, ...]], str]] = [
    ({}, "expected {log"),
    ({"logarithmic": (1, 2)}, "expected {log"),
    ({"log": (1, 2), "linear": (1, 2)}, "expected {log"),
    ({"log": ()}, "expected {log"),
    ({"choice": ()}, "expected {log"),
    ({"linear": (1,)}, "expected two numbers"),
    ({"linear": (1, 2, 3)}, "expected two numbers"),
    ({"linear": ("a", 2)}, "expected two numbers"),
    ({"linear": (True, 2)}, "expected two numbers"),
    ({"linear": (0, math.inf)}, "expected two numbers"),
    ({"log": (math.nan, 2)}, "expected two numbers"),
    ({"linear": (1.0, 1.0)}, "expected low < high"),
    ({"linear": (2, 1)}, "expected low < high"),
    ({"log": (0, 1)}, "starts above 0, not at 0"),
    ({"log": (-1, 1)}, "starts above 0, not at -1"),
]
LEGAL: list[dict[str, tuple[Any, ...]]] = [
    {"log": (1e-9, 1)},
    {"linear": (0, 1)},
    {"linear": (-2, -1.5)},
    {"choice": ("a",)},
    {"choice": (3, 1, True, None)},
]


@pytest.mark.parametrize(("range_", "message"), ILLEGAL, ids=str)
def test_an_illegal_range_is_refused_and_named(range_: dict[str, tuple[Any, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check_range("local.lr", range_)
    assert str(error.value).startswith("tune: local.lr: ")


@pytest.mark.parametrize("range_", LEGAL, ids=str)
def test_a_legal_range_is_taken(range_: dict[str, tuple[Any, ...]]) -> None:
    check_range("local.lr", range_)
