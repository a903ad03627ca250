"""Which runs of a sweep one process should do: those that share a training."""

from __future__ import annotations

from collections.abc import Sequence

from fedbench.plan.config import Sweep, training_key


def training_groups(sweep: Sweep, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The runs `names` in groups that have one training each, in the order of each group's first run.

    With `machine: {shortcuts: false}` each run is a group, since nothing is shared then.
    """
    keys = {planned.name: training_key(planned.identity) for planned in sweep.runs} if sweep.machine.shortcuts else {}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(keys.get(name, name), []).append(name)
    return [tuple(group) for group in groups.values()]
