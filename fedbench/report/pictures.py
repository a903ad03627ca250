"""Pictures that methods offer: the hook `picture`, called on the last state of a finished run.

Methods are plug-ins and use torch, so this runs in the separate process that reads sweep files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedbench.report import run_artifacts

if TYPE_CHECKING:
    from fedbench.plan.config import PlannedRun
    from fedbench.plan.plugins import Plugins

# {run: (caption, {panel: matrix})}
Pictures = dict[str, tuple[str, dict[str, NDArray[np.float64]]]]


def pictures_of(runs: Sequence[PlannedRun], plugins: Plugins, results: Path) -> tuple[Pictures, list[str]]:
    """The pictures of the first finished run of each method with the hook, all of one setting; and notes on failures."""
    pictures: Pictures = {}
    notes: list[str] = []
    pictured: set[str] = set()
    place: Any = None
    for planned in runs:
        folder = results / planned.name
        if planned.label in pictured or "trial_of" in planned.tuning or not (folder / "done").exists():
            continue
        method = plugins.make("method", planned.run.method)
        setting = planned.run.dataset, planned.run.partition
        if method.picture is None or place not in (None, setting):
            continue
        state = {name.removeprefix("server."): value for name, value in run_artifacts.server_state(folder).items()}
        if not state:
            continue
        pictured.add(planned.label)
        try:
            pictures[planned.name] = _caption(method), _panels(method, state, folder)
            place = setting
        except Exception as error:  # noqa: BLE001 - a user's code, which must not end the report
            notes.append(f"{planned.label}: its picture() failed ({type(error).__name__}: {error}).")
    return pictures, notes


def _caption(method: Any) -> str:
    paragraph = (type(method).picture.__doc__ or "").strip().partition("\n\n")[0]
    return " ".join(paragraph.split())


def _panels(method: Any, state: dict[str, NDArray[np.float64]], folder: Path) -> dict[str, NDArray[np.float64]]:
    import torch

    counts = run_artifacts.class_counts(folder)
    prior = None
    if not counts.empty:
        of_client = counts[counts["client"] == counts["client"].min()]
        classes = 1 + max(int(counts["class"].max()), *(len(value) - 1 for value in state.values() if value.ndim))
        sums = np.bincount(of_client["class"], of_client["samples"], minlength=classes)
        prior = torch.from_numpy(sums / sums.sum())
    with torch.no_grad():
        made = method.picture({name: torch.from_numpy(value) for name, value in state.items()}, prior)
    panels = {str(name): np.asarray(value, dtype=np.float64) for name, value in made.items()}
    wrong = [name for name, value in panels.items() if value.ndim != 2 or not value.size]
    if wrong:
        raise ValueError(f"expected matrices [rows, columns], found {wrong[0]!r} of shape {panels[wrong[0]].shape}")
    return panels
