"""Error and power of the verdicts on simulated benchmarks: the tables of docs/verdicts.md.

The simulated accuracies follow short runs on the embedded default. For two methods, training with another
seed changes the difference by 0.7 points (standard deviation) and each client by 2.5 points. The measured rules
are those of `statistics`, by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbench.report.statistics import SAME, Error, Floats, blocked_error, crossed_error

SEED, CLIENT, CLIENTS = 0.7, 2.5, 100  # standard deviations of a difference, in points; clients of a setting
REPEATS = 4000
METHODS, SEEDS, SETTINGS = (2, 4, 8), (2, 3, 5), (3, 6, 12)


@dataclass(frozen=True)
class World:
    """A kind of noise: its description, and draws of it [R, M, B] with standard deviation near 1."""

    name: str
    noise: Callable[[np.random.Generator, tuple[int, int, int]], Floats]


def _heavy(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return np.asarray(draw.standard_t(3, shape) / np.sqrt(3))


def _uneven(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return draw.normal(size=shape) * np.exp(draw.normal(0, 0.5, (shape[0], 1, shape[2])))


def _related(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Methods come in pairs of variants that share half of the variance."""
    repeats, methods, blocks = shape
    family = np.repeat(draw.normal(size=(repeats, (methods + 1) // 2, blocks)), 2, axis=1)[:, :methods]
    return np.asarray((family + draw.normal(size=shape)) / np.sqrt(2))


def _scaled(draw: np.random.Generator, shape: tuple[int, int, int], noisy: int, times: float) -> Floats:
    scale = np.ones((shape[1], 1))
    scale[shape[1] - noisy :] = times
    return draw.normal(size=shape) * scale


PLAIN = World("all methods equally noisy", lambda draw, shape: draw.normal(size=shape))
WORLDS = (
    PLAIN,
    World("heavy tails (Student's t, 3 degrees of freedom)", _heavy),
    World("seeds of uneven noise", _uneven),
    World("variants share half of their luck", _related),
    World("half of the methods 1.5 times as noisy", lambda draw, shape: _scaled(draw, shape, shape[1] // 2, 1.5)),
)
# More than the rules can handle with few blocks; measured in the docs, not tested.
HARD = (
    World("half of the methods 4 times as noisy", lambda draw, shape: _scaled(draw, shape, shape[1] // 2, 4.0)),
    World("one method 4 times as noisy", lambda draw, shape: _scaled(draw, shape, 1, 4.0)),
)


def seed_means(world: World, methods: int, seeds: int, better: float = 0.0) -> Floats:
    """Simulated mean accuracies [REPEATS, M, seeds] in points; the first method is `better`, the others are equal.

    A value is the sum of a method's effect, the seed's effect on all methods (3 points), and the method's own noise.
    """
    draw = np.random.default_rng([methods, seeds, *world.name.encode()])
    shape = (REPEATS, methods, seeds)
    effect = np.zeros((methods, 1))
    effect[0] = better
    shared = draw.normal(0, 3, (REPEATS, 1, seeds))
    noise = (SEED * world.noise(draw, shape) + CLIENT / np.sqrt(CLIENTS) * draw.normal(size=shape)) / np.sqrt(2)
    return np.asarray(effect + shared + noise)


def claims(values: Floats) -> NDArray[np.bool_]:
    """The pairs of values [..., M, B] that the rules call different, [..., M, M]."""
    return _claims(values.mean(-1), blocked_error(values))


def _claims(mean: Floats, error: Error) -> NDArray[np.bool_]:
    return np.asarray(np.abs(mean[..., :, None] - mean[..., None, :]) > error.margins() + SAME)


def family_error(world: World, methods: int, seeds: int) -> float:
    """How often any two of equal methods are called different."""
    return float(claims(seed_means(world, methods, seeds)).any((-2, -1)).mean())


def error_beside_a_better_one(world: World, methods: int, seeds: int) -> float:
    """How often two of the equal methods are called different beside a method that is 2 points better."""
    return float(claims(seed_means(world, methods, seeds, 2.0))[:, 1:, 1:].any((-2, -1)).mean())


def detection(world: World, methods: int, seeds: int, better: float) -> float:
    """How often a method that is `better` (points) is called different from a given other method."""
    return float(claims(seed_means(world, methods, seeds, better))[:, 0, 1].mean())


def error_over_settings(methods: int, settings: int, seeds: int, luck: float) -> float:
    """How often equal methods are called different over all settings.

    Methods differ between settings by 2 points (standard deviation), but not on average. `luck` is the share of
    a seed's variance that a method has in common over all settings, since runs of one seed share initial weights.
    """
    draw = np.random.default_rng([methods, settings, seeds, round(100 * luck)])
    shape = (REPEATS, methods, settings, seeds)
    common, single = draw.normal(size=(REPEATS, methods, 1, seeds)), draw.normal(size=shape)
    values = 2 * draw.normal(size=(*shape[:3], 1)) + SEED * (np.sqrt(luck) * common + np.sqrt(1 - luck) * single)
    return float(_claims(values.mean((-2, -1)), crossed_error(values)).any((-2, -1)).mean())


def as_markdown() -> str:
    """The tables of docs/verdicts.md."""
    return "\n".join(_pages())


def _pages() -> Iterator[str]:
    columns = [(methods, seeds) for methods in METHODS for seeds in SEEDS]
    heads = [f"{methods} methods, {seeds} seeds" for methods, seeds in columns]
    yield "Family-wise error: equal methods of which any two are called different, in percent.\n"
    yield from _table("noise", heads, ((w.name, [family_error(w, *at) for at in columns]) for w in (*WORLDS, *HARD)))
    yield "\nA false claim between two of the equal methods, beside one that is 2 points better, in percent.\n"
    several = [at for at in columns if at[0] > 2]
    heads = [f"{methods} methods, {seeds} seeds" for methods, seeds in several]
    rows = ((w.name, [error_beside_a_better_one(w, *at) for at in several]) for w in (*WORLDS, *HARD))
    yield from _table("noise", heads, rows)
    yield "\nPower: how often a method that is better by this much is called better than a given other method, in percent.\n"
    columns = [(methods, seeds) for methods in METHODS for seeds in (*SEEDS, 10)]
    heads = [f"{methods} methods, {seeds} seeds" for methods, seeds in columns]
    rows = (
        (f"{points:g} points", [detection(PLAIN, *at, points) for at in columns]) for points in (0.5, 1.0, 2.0, 4.0)
    )
    yield from _table("difference", heads, rows)
    yield "\nFamily-wise error over several settings, 8 equal methods, in percent.\n"
    over = [(settings, seeds) for settings in SETTINGS for seeds in SEEDS]
    heads = [f"{settings} settings, {seeds} seeds" for settings, seeds in over]
    rows = ((f"{luck:.0%}", [error_over_settings(8, *at, luck) for at in over]) for luck in (0.0, 0.5, 1.0))
    yield from _table("luck of a seed that all settings share", heads, rows)


def _table(corner: str, heads: list[str], rows: Iterator[tuple[str, list[float]]]) -> Iterator[str]:
    yield f"| {' | '.join([corner, *heads])} |"
    yield f"| --- |{' ---: |' * len(heads)}"
    for name, values in rows:
        yield f"| {' | '.join([name, *(f'{100 * value:.1f}' for value in values)])} |"
