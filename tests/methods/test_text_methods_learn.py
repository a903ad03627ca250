"""Every method with contexts learns: on ten classes, where a step is cheap, it ends clearly above zero-shot CLIP.

The roster of all classes (tests/test_roster.py) has too few steps for that. Here 4 clients train for 8 rounds on 720 images of
`glyphs`, and 600 test images decide. Zero-shot CLIP reaches 33 %, and the methods between 53 % (fedotp) and 89 % (promptfolio).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench.base.records import RunFolder
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.simulation import run_rounds

METHODS = {
    name: cls
    for name, cls in plugins().classes["method"].items()
    if cls.reads_text and "context_length" in {field.name for field in dataclasses.fields(cls)}
}
FIELDS = {name: {"context_length": 4} for name in METHODS} | {
    "fedotp": {"context_length": 4, "iterations": 10},
    "pfedmoap": {"context_length": 4, "experts": 2},
}
CLASSES = np.arange(0, 100, 10)
MARGIN = 0.15  # more than seven standard errors of the accuracy on 600 images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.npz`: every tenth class of glyphs."""
    folder = tmp_path_factory.mktemp("learn")
    made = plugins().make("dataset", {"name": "glyphs", "train_per_class": 12, "test_per_class": 10})
    samples = made.load(folder)
    kept = np.isin(samples.labels, CLASSES)
    np.savez(
        folder / "data.npz",
        images=samples.images[kept],
        labels=np.searchsorted(CLASSES, samples.labels[kept]),
        is_test=samples.is_test[kept],
        class_names=[samples.class_names[label] for label in CLASSES],
    )
    return folder


def accuracy(name: str, folder: Path) -> float:
    """The mean accuracy of the method `name` after the last round."""
    base: dict[str, Any] = {
        "backbone": {"name": "clip_nano"},
        "dataset": {"name": "npz", "path": str(folder / "data.npz")},
        "partition": {"name": "dirichlet", "alpha": 1.0},
        "method": {"name": name} | FIELDS.get(name, {}),
        "rounds": 8,
        "clients": {"number": 4, "per_round": 4, "validation": 0.0},
        "local": {"epochs": 2, "batch_size": 16, "lr": 0.003, "momentum": 0.9},
        "evaluate_every": 8,
    }
    sweep = check_sweep({"base": base, "machine": {"data": str(folder)}}, plugins())
    (planned,) = sweep.runs
    run = RunFolder(folder / planned.name)
    run.plan(sweep.on_disk(planned))
    run_rounds(planned, sweep.machine, sweep.plugins, run)
    return float(run.records()[-1]["mean_accuracy"])


@pytest.fixture(scope="module")
def zero_shot(folder: Path) -> float:
    """The accuracy of zero-shot CLIP."""
    return accuracy("clip_zero_shot", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_with_contexts_ends_clearly_above_zero_shot(name: str, folder: Path, zero_shot: float) -> None:
    measured = accuracy(name, folder)
    assert measured > zero_shot + MARGIN
