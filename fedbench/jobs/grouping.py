"""Groups the runs of a sweep that one process should do, because they share a training."""

from __future__ import annotations

from collections.abc import Sequence

from fedbench.plan.config import Sweep
from fedbench.plan.identity import training_key


def training_groups(sweep: Sweep, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The runs `names`, grouped by shared training, in the order of each group's first run.

    With `machine: {shortcuts: false}`, runs share nothing, so each run is a group.
    """
    keys = {planned.name: training_key(planned.identity) for planned in sweep.runs} if sweep.machine.shortcuts else {}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(keys.get(name, name), []).append(name)
    return [tuple(group) for group in groups.values()]
