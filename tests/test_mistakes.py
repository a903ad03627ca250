"""The texts of collected mistakes: how many are listed, how long a value is, and what is suggested."""

from __future__ import annotations

import re

import pytest

from fedbench.plan.config import ConfigError
from fedbench.plan.mistakes import Mistakes, shown


def text_of(mistakes: Mistakes, source: str = "") -> list[str]:
    with pytest.raises(ConfigError) as raised:
        mistakes.raise_if_any(source)
    return str(raised.value).splitlines()


def test_mistakes_are_counted_and_each_is_listed_once_in_order() -> None:
    mistakes = Mistakes()
    mistakes.raise_if_any("a.yaml")
    mistakes.add("base.seed", "expected a number")
    assert text_of(mistakes, "a.yaml") == ["a.yaml: 1 mistake", "  - base.seed: expected a number"]
    mistakes.add("", "the file is empty")
    mistakes.add("base.seed", "expected a number")
    assert len(mistakes) == 2
    assert text_of(mistakes) == ["2 mistakes", "  - base.seed: expected a number", "  - the file is empty"]


@pytest.mark.parametrize(
    ("count", "last"), [(40, "  - 39: wrong"), (41, "  ... and 1 more"), (1240, "  ... and 1,200 more")]
)
def test_forty_mistakes_are_listed_and_the_others_counted(count: int, last: str) -> None:
    mistakes = Mistakes()
    for i in range(count):
        mistakes.add(str(i), "wrong")
    lines = text_of(mistakes)
    assert lines[0] == f"{count:,} mistakes"
    assert lines[-1] == last
    assert len(lines) == min(count, 41) + 1


@pytest.mark.parametrize("count", [10, 12])
def test_ten_unknown_names_of_a_place_are_listed(count: int) -> None:
    mistakes = Mistakes()
    assert mistakes.unknown_names(["seed"], ["seed", "rounds"], "base")
    assert not mistakes.unknown_names(["sead", *(f"x{i}" for i in range(1, count))], ["seed", "rounds"], "base")
    lines = text_of(mistakes)[1:]
    assert lines[0] == "  - base: unknown name 'sead'; did you mean 'seed'? legal: seed, rounds"
    assert lines[1] == "  - base: unknown name 'x1'; legal: seed, rounds"
    assert lines[10:] == (["  - base: 2 more unknown names"] if count > 10 else [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a" * 118, f"'{'a' * 118}'"),
        ("a" * 119, f"'{'a' * 116}..."),
        ([1] * 121, "a list of 121 values"),
        (dict.fromkeys(range(1200)), "a mapping of 1,200 values"),
        ([1] * 40, str([1] * 40)),
        ([1] * 120, f"{str([1] * 120)[:117]}..."),
    ],
)
def test_a_long_value_is_shortened(value: object, text: str) -> None:
    assert shown(value) == text
    assert len(re.sub(r"^a (list|mapping).*", "", shown(value))) <= 120
