"""The learning rate of each round, and the mistakes that a schedule in a sweep file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedbench.plan.config import LocalConfig, RunConfig
from fedbench.plan.mistakes import Mistakes, shown


def learning_rate(local: LocalConfig, rounds: int, round_: int) -> float:
    """The clients' learning rate in round `round_` (from 1) of `rounds`.

    A round counts as one step of torch.optim.lr_scheduler: ExponentialLR, CosineAnnealingLR to zero with T_max = rounds, and
    for "warmup" LinearLR from lr / w to lr over w = `warmup_rounds` rounds, then CosineAnnealingLR over the other rounds.
    """
    done = round_ - 1
    if local.schedule == "constant":
        return local.lr
    if local.schedule == "exponential":
        return local.lr * local.lr_decay**done
    warm = local.warmup_rounds if local.schedule == "warmup" else 0
    if done < warm:
        return local.lr * round_ / warm
    return local.lr * (1 + math.cos(math.pi * (done - warm) / (rounds - warm))) / 2


def depends_on_rounds(local: LocalConfig) -> bool:
    """Whether the learning rate of a round depends on the run's number of rounds."""
    return local.schedule in ("cosine", "warmup")


def add_mistakes(run: Mapping[str, Any], planned: RunConfig, mistakes: Mistakes) -> None:
    """Add a mistake for keys of the schedule without effect, and for a warm-up that takes all rounds.

    `run`: the run as the file has it; `planned`: the same with defaults.
    """
    local, written = planned.local, run.get("local")
    if not isinstance(written, Mapping):
        return
    schedule = local.schedule
    if schedule != "exponential" and local.lr_decay != 1:
        mistakes.add(
            "local.lr_decay",
            f"{shown(local.lr_decay)} has no effect with `schedule: {schedule}`, only with exponential; leave it out",
        )
    if schedule != "warmup" and "warmup_rounds" in written:
        mistakes.add(
            "local.warmup_rounds",
            f"{shown(local.warmup_rounds)} has no effect with `schedule: {schedule}`, only with warmup; leave it out",
        )
    if schedule == "warmup" and local.warmup_rounds >= planned.rounds:
        mistakes.add(
            "local.warmup_rounds",
            f"expected fewer than the run's {planned.rounds} rounds, found {local.warmup_rounds}",
        )
