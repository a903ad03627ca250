"""The goals of speed on a GPU, each with the number that a device report gives for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.bench.measuring import COMPILED, GRAPHS, LOOP, PACK

Speed = Mapping[str, Any]  # a report's file ``speed_<case>.json``
METHOD = "fedvpt"
BASE, TINY, NANO = "vit_base_224", "vit_tiny_96", "nano_32"


@dataclass(frozen=True)
class Goal:
    """At least `least` of the `value` in the report on `case`. It raises LookupError if that was not measured."""

    words: str
    case: str
    least: float
    value: Callable[[Speed], float]


def gains(speed: Speed, what: str, ways: Sequence[str]) -> list[float]:
    """How many times faster `METHOD` is in each of the measured `ways`, as ratios within one process."""
    ratios: list[float] = []
    for measured in (speed["measured"], speed.get("compiled")):
        plain = measured["methods"][METHOD].get(what) if measured else None
        if measured and plain:
            kinds = [measured["baselines"].get(way, {}).get(what) for way in ways]
            ratios += [kind["images_per_second"] / plain["images_per_second"] for kind in kinds if kind]
    return ratios


def fraction(speed: Speed, what: str) -> float:
    """The share of the matrix product rate, in the fastest way that was measured."""
    plain = float(speed["measured"]["methods"][METHOD][what]["fraction"])
    return plain * max([1.0, *gains(speed, what, (COMPILED, GRAPHS))])


def times_without(speed: Speed) -> float:
    """Local training with CUDA graphs or as a pack, whichever is faster, in times of the same without."""
    ratios = gains(speed, "training", (GRAPHS, PACK))
    if not ratios:
        raise LookupError(GRAPHS)
    return max(ratios)


def times_loop(speed: Speed) -> float:
    """Local training, in the fastest way that was measured, in times of one client at a time."""
    (loop,) = gains(speed, "training", (LOOP,))[:1] or [0.0]
    if not loop:
        raise LookupError(LOOP)
    return max([1.0, *gains(speed, "training", (COMPILED, GRAPHS))]) / loop


NAMES = {BASE: "ViT-B/16 at 224 px", TINY: "ViT-Ti/16 at 96 px", NANO: "nano"}
RATE = "share of the bfloat16 product rate"
GOALS = (
    Goal(f"local training, {RATE}, {NAMES[BASE]}", BASE, 0.5, lambda speed: fraction(speed, "training")),
    Goal(f"evaluation, {RATE}, {NAMES[BASE]}", BASE, 0.6, lambda speed: fraction(speed, "evaluation")),
    *(Goal(f"graphs or packs, times without, {NAMES[case]}", case, 3.0, times_without) for case in (TINY, NANO)),
    *(Goal(f"local training, times one client at a time, {name}", case, 10.0, times_loop) for case, name in NAMES.items()),
)  # fmt: skip


def answers(folder: Path) -> list[dict[str, Any]]:
    """Each goal with its least value and the measured one, None if it was not measured, from the reports in a folder."""
    return [{"goal": goal.words, "least": goal.least, "measured": _measured(goal, folder)} for goal in GOALS]


def _measured(goal: Goal, folder: Path) -> float | None:
    try:
        return round(goal.value(json.loads((folder / f"speed_{goal.case}.json").read_text())), 3)
    except (OSError, LookupError, ValueError):
        return None


def in_words(answer: Mapping[str, Any]) -> str:
    """An answer in a line."""
    measured, least = answer["measured"], answer["least"]
    if measured is None:
        return f"not measured (at least {least:g} wanted)"
    return f"{measured:g}, {'met' if measured >= least else 'missed'} (at least {least:g} wanted)"
