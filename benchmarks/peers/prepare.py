"""Draws a task in advance: synthetic images of clients, and the cohorts and batches that fedbench will draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.peers import model, ours
from benchmarks.peers.task import VALUES
from fedbench import data
from fedbench.run.experiment import build

COMMON = {"clients": 100, "per_round": 10, "classes": 100, "batch": 32, "prompts": 8, "lr": 0.1}
SIZES = {"train_each": (40, 60), "tests": 1000}  # 50 training and 10 test samples a client, in the mean
CASES: dict[str, dict[str, Any]] = {
    "small@32": {"architecture": {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}},
    "vit_tiny@96": {"architecture": {"img_size": 96}},
}


def pictures(labels: NDArray[np.int64], classes: int, size: int) -> NDArray[np.uint8]:
    """Noise over coarse colours of each class [C, 4, 4, 3], so that the classes can be learned: [N, size, size, 3]."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(64, 192, (classes, 4, 4, 3))[labels].astype(np.int16)
    noise = draw.integers(-48, 49, (len(labels), size, size, 3), dtype=np.int16)
    return (coarse.repeat(size // 4, 1).repeat(size // 4, 2) + noise).clip(0, 255).astype(np.uint8)


def prepare(folder: Path, case: dict[str, Any]) -> None:
    """Write the task `case` to the folder `folder`: the keys of `COMMON` and `SIZES`, rounds, evaluate_every, architecture."""
    folder.mkdir(parents=True)
    clients, classes, tests = case["clients"], case["classes"], case["tests"]
    draw = np.random.default_rng(1)
    train = draw.integers(case["train_each"][0], case["train_each"][1] + 1, clients)
    user = np.concatenate([np.repeat(np.arange(clients), train), np.arange(tests) % clients])
    labels = np.resize(np.arange(classes), len(user))[draw.permutation(len(user))]
    is_test = np.arange(len(user)) >= train.sum()
    images = pictures(labels, classes, case["architecture"]["img_size"])
    np.savez(folder / "data.npz", images=images, labels=labels, is_test=is_test, user=user)
    torch.manual_seed(0)
    save_file(model.backbone(case["architecture"]).state_dict(), folder / "vit.safetensors")
    (folder / "case.json").write_text(json.dumps(case))

    planned = (planned_sweep := ours.sweep(folder)).runs[0]
    experiment = build(planned, planned_sweep.machine, planned_sweep.plugins)
    seed, split = experiment.run.stream("batches"), experiment.split
    drawn = []
    for round_ in range(1, experiment.run.rounds + 1):
        cohort = experiment.cohort_of(round_)
        drawn.append(data.batches(split.train, cohort, case["batch"], experiment.run.local.epochs, seed, round_, 0))
    longest = max(batches.index.shape[0] for batches in drawn) * case["batch"]
    order = np.full((len(drawn), case["per_round"], longest), -1, dtype=np.int64)
    for client_order, batches in zip(order, drawn, strict=True):
        for row in range(len(client_order)):
            taken = batches.index[:, row][batches.weight[:, row] > 0]
            client_order[row, : len(taken)] = taken
    everyone = [split.test[k] for k in range(clients)]
    start: dict[str, Any] = {name: experiment.server.values[name].numpy() for name in VALUES}
    np.savez(
        folder / "task.npz",
        cohort=np.stack([batches.clients for batches in drawn]),
        order=order,
        test=np.concatenate(everyone),
        test_sizes=np.array([len(part) for part in everyone]),
        **start,
    )
