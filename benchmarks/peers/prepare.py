"""Draws a task in advance: synthetic images of clients, and the cohorts and batches that fedbench will draw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.peers import model, ours
from benchmarks.peers.task import CONTEXT, VALUES
from fedbench import data
from fedbench.run.experiment import build

COMMON = {"method": "fedvpt", "clients": 100, "per_round": 10, "classes": 100, "batch": 32, "prompts": 8, "lr": 0.1}
SIZES = {"train_each": (40, 60), "tests": 1000}  # 50 training and 10 test samples a client, in the mean
# PromptFL on open_clip's ViT-S-32-alt with random weights: all of 10 clients in each round, 16 contexts, 77 positions
CLIP = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 10},
}
PROMPTFL = {
    "method": "promptfl", "clients": 10, "prompts": 16, "lr": 1.0, "train_each": (24, 32), "tests": 100
}  # fmt: skip
NAMES = Path(__file__).with_name("class_names.txt")  # of CIFAR-100: 3.2 tokens with the full stop and the end
CASES: dict[str, dict[str, Any]] = {
    "small@32": {"architecture": {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}},
    "vit_tiny@96": {"architecture": {"img_size": 96}},
    "promptfl": PROMPTFL | {"architecture": CLIP},
}


def pictures(labels: NDArray[np.int64], classes: int, size: int) -> NDArray[np.uint8]:
    """Noise over coarse colours of each class [C, 4, 4, 3], so that the classes can be learned: [N, size, size, 3]."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(64, 192, (classes, 4, 4, 3))[labels].astype(np.int16)
    noise = draw.integers(-48, 49, (len(labels), size, size, 3), dtype=np.int16)
    return (coarse.repeat(size // 4, 1).repeat(size // 4, 2) + noise).clip(0, 255).astype(np.uint8)


def image_size(case: dict[str, Any]) -> int:
    """The width of the case's images in pixels."""
    architecture = case["architecture"]
    return int(architecture["vision_cfg"]["image_size"] if case["method"] == "promptfl" else architecture["img_size"])


def write_weights(path: Path, case: dict[str, Any]) -> None:
    """Write random weights for the case's frozen model."""
    torch.manual_seed(0)
    if case["method"] == "promptfl":
        from benchmarks.peers import clip_model  # needs open_clip

        state = clip_model.clip(case["architecture"], path.parent).state_dict()
    else:
        state = model.backbone(case["architecture"]).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def prepare(folder: Path, case: dict[str, Any]) -> None:
    """Write the task `case` to the folder `folder`: the keys of `COMMON` and `SIZES`, rounds, evaluate_every, architecture."""
    folder.mkdir(parents=True)
    clients, classes, tests = case["clients"], case["classes"], case["tests"]
    draw = np.random.default_rng(1)
    train = draw.integers(case["train_each"][0], case["train_each"][1] + 1, clients)
    user = np.concatenate([np.repeat(np.arange(clients), train), np.arange(tests) % clients])
    labels = np.resize(np.arange(classes), len(user))[draw.permutation(len(user))]
    is_test = np.arange(len(user)) >= train.sum()
    images = pictures(labels, classes, image_size(case))
    names = np.array(NAMES.read_text().split()[:classes])
    np.savez(folder / "data.npz", images=images, labels=labels, is_test=is_test, user=user, class_names=names)
    write_weights(folder / "weights.safetensors", case)
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
    start: dict[str, Any] = {
        name: experiment.server.values[name].numpy() for name in (CONTEXT if case["method"] == "promptfl" else VALUES)
    }
    np.savez(
        folder / "task.npz",
        cohort=np.stack([batches.clients for batches in drawn]),
        order=order,
        test=np.concatenate(everyone),
        test_sizes=np.array([len(part) for part in everyone]),
        **start,
    )
    shutil.rmtree(folder / "cache", ignore_errors=True)  # image features, which a system must compute itself
