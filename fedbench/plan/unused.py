"""Keys of a sweep file that are legal and would change nothing, such as the momentum of an optimizer that has none.

Only keys that the file sets to something else than their default are mistakes. Keys that many runs share through `base` may
be of use to some of them: a method that trains nothing ignores the whole recipe `local`, and that is no mistake.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedbench.plan.config import PlannedRun
from fedbench.plan.mistakes import Mistakes, shown
from fedbench.plan.plugins import PLUGIN_KINDS, Plugins


def add_unused_momentum(run: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Add a mistake if the run, as the file has it, sets a momentum beside an optimizer without one."""
    local = run.get("local")
    if not isinstance(local, Mapping) or local.get("optimizer", "sgd") not in ("adam", "adamw"):
        return
    if local.get("momentum"):
        mistakes.add(
            "local.momentum",
            f"{shown(local['momentum'])} has no effect with `optimizer: {local['optimizer']}`, only with sgd; leave it out, "
            "or set it to 0",
        )


def add_unused_options(run: Mapping[str, Any], planned: PlannedRun, available: Plugins, mistakes: Mistakes) -> None:
    """Add a mistake for each option of a plug-in that the run, as the file has it, sets in vain.

    Plug-ins declare by ``option(..., needs=(words, condition))`` when an option has an effect.
    """
    checked = planned.run.model_dump()
    for kind in PLUGIN_KINDS:
        written, block = run.get(kind), checked[kind]
        if not isinstance(written, Mapping):
            continue
        for field in dataclasses.fields(available.classes[kind][block["name"]]):
            needs = field.metadata.get("needs")
            if needs is None or field.name not in written or block[field.name] == field.default:
                continue
            words, is_met = needs
            if not is_met(available.make(kind, block)):
                place = f"{kind} {block['name']}.{field.name}"
                mistakes.add(place, f"{shown(block[field.name])} has no effect here; it needs {words}")
