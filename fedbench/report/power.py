"""How many seeds a difference needs: the power of the verdicts, from the variance observed in a report."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from fedbench.report.statistics import critical, deviation_nodes

POWER = 0.8  # the usual target
MOST = 50  # seeds


def power(difference: float, variance: float, methods: int, blocks: int) -> float:
    """The probability that two of `methods` methods that differ by `difference` are called different over `blocks` >= 2 blocks.

    variance: residual variance of one value, as `Comparison.variance`. For the pooled test alone: the guard against noisier
    pairs costs up to ten points more, see docs/verdicts.md. Noncentral t at Tukey's critical value.
    """
    freedom = (methods - 1) * (blocks - 1)
    if variance <= 0:
        return 1.0 if difference else 0.0
    shift = abs(difference) / math.sqrt(2 * variance / blocks)
    needed = critical(methods, freedom) / math.sqrt(2)
    s, mass = deviation_nodes(freedom)
    return float(np.sum(mass * (ndtr(shift - needed * s) + ndtr(-shift - needed * s))))


def blocks_needed(difference: float, variance: float, methods: int, wanted: float = POWER) -> int | None:
    """The smallest number of blocks, at least 2, that detects `difference` with power `wanted`; None above MOST."""
    low, high = 2, MOST
    if power(difference, variance, methods, high) < wanted:
        return None
    while low < high:  # power grows with the number of blocks
        middle = (low + high) // 2
        if power(difference, variance, methods, middle) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low
