"""Groups the runs of a sweep that one process should do, because they share a training."""

from __future__ import annotations

from collections.abc import Sequence

from fedbench.plan.config import Sweep
from fedbench.plan.identity import pack_key, training_key


def training_groups(sweep: Sweep, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The runs `names`, grouped by shared training, in the order of each group's first run.

    With `machine: {shortcuts: false}`, runs share nothing, so each run is a group. With `machine: {pack: true}`, groups that
    can be trained together follow each other.
    """
    keys = {planned.name: training_key(planned.identity) for planned in sweep.runs} if sweep.machine.shortcuts else {}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(keys.get(name, name), []).append(name)
    if sweep.machine.pack:
        packs = {planned.name: pack_key(planned.identity) for planned in sweep.runs}
        ranks = {key: rank for rank, key in enumerate(dict.fromkeys(packs.get(group[0]) for group in groups.values()))}
        return [tuple(group) for group in sorted(groups.values(), key=lambda group: ranks[packs.get(group[0])])]
    return [tuple(group) for group in groups.values()]


def neighbours_in_a_slot(groups: Sequence[tuple[str, ...]], slots: int) -> list[tuple[str, ...]]:
    """Reorder `groups` so that every `slots`-th of them, which one slot gets, were neighbours before."""
    sizes = [len(groups[i::slots]) for i in range(slots)]
    starts = [sum(sizes[:i]) for i in range(slots)]
    return [groups[starts[i % slots] + i // slots] for i in range(len(groups))]
