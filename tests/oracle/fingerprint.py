"""The observable aspects of a run, so that a test can say which aspects an option changes and which it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from oracle import plain_vit

from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run import evaluation, simulation
from fedbench.run.experiment import Experiment, build

SAMPLES = torch.tensor([[0, 5, 11], [3, 8, 2]])  # what the first client and the held-out one are asked about
ASPECTS = (
    *(
        "data",
        "backbone",
        "split",
        "cohorts",
        "shapes",
        "rates",
        "start",
        "scores",
        "steps",
        "costs",
        "merged",
        "answers",
    ),
)


def write_world(folder: Path) -> None:
    """72 noisy images of four classes in three domains and of six users, and the weights of the backbone."""
    draw = np.random.default_rng(2)
    labels = np.arange(72) % 4
    images = draw.integers(0, 200, (72, 32, 32, 3)) + 18 * labels[:, None, None, None]
    columns = {
        "labels": labels,
        "is_test": np.arange(72) % 12 < 4,
        "class_names": np.array(["cat", "dog", "fox", "blackbird"]),
    }
    np.savez(folder / "a.npz", images=images.astype(np.uint8), **columns)
    np.savez(folder / "b.npz", images=images[::-1].astype(np.uint8), **columns)
    (folder / "who.csv").write_text("round,client\n1,0\n1,4\n1,1\n2,0\n2,1\n2,4\n")
    tiny.write_two_towers(folder / "two_towers.safetensors")
    state = plain_vit.write_weights(folder / "a.safetensors")
    from safetensors.torch import save_file

    save_file({name: value * 1.1 for name, value in state.items()}, folder / "b.safetensors")


def text_base(folder: Path) -> dict[str, Any]:
    """The run that options of methods with text prompts change."""
    return base(folder) | {"backbone": {"name": "two_towers", "weights": str(folder / "two_towers.safetensors")}}


def base(folder: Path) -> dict[str, Any]:
    """The run that options change."""
    return {
        "backbone": {"name": plain_vit.NAME, "weights": str(folder / "a.safetensors"), "image_size": 32},
        "dataset": {"name": "npz", "path": str(folder / "a.npz")},
        "partition": {"name": "dirichlet", "alpha": 5.0, "min_train": 5},
        "method": {"name": "fedvpt", "prompt_length": 2},
        "aggregation": {"name": "fedavg"},
        "rounds": 3,
        "clients": {"number": 5, "per_round": 2, "held_out": 1, "validation": 0.2},
        "local": {"epochs": 1, "batch_size": 4, "lr": 0.1},
        "precision": "float64",
    }


def experiment_of(content: dict[str, Any], folder: Path) -> Experiment:
    machine = {"data": str(folder), "device": "cpu"}
    sweep = check_sweep({"base": content, "machine": machine}, plugins())
    return build(sweep.runs[0], sweep.machine, sweep.plugins)


def fingerprint(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Every aspect of the run `content`.

    shapes: tensors and where they live; rates: factors on their learning rates; start: initial values, each client's own;
    scores: logits before any training, once the first cohort has reported; steps: what the first cohort returns; costs: of
    round 1; merged: all that is kept after two rounds; answers: logits then, with the values that evaluation uses.
    """
    experiment = experiment_of(content, folder)
    facts, server = experiment.facts, experiment.server
    spec = {name: param for name, param in server.spec.items() if name != "prior"}
    aspects: dict[str, Any] = {
        "data": facts.data_hash,
        "backbone": facts.backbone_hash,
        "split": facts.partition_hash,
        "cohorts": facts.cohort_hash,
        "shapes": {n: (tuple(p.init.shape), p.home, p.trained) for n, p in spec.items()},
        "rates": {n: p.lr_scale for n, p in spec.items() if p.lr_scale != 1},
        "start": server.values | server.send(torch.arange(2)),
    }
    aspects["start"].pop("prior", None)
    sent = simulation.send(experiment, 1)
    aspects["scores"] = logits(experiment)
    updates = sent.training.train()
    losses = {"loss": updates.loss[updates.clients.argsort()]}
    aspects["steps"] = {n: v[updates.clients.argsort()] for n, v in updates.updated.items() if n != "prior"} | losses
    result = simulation.receive(experiment, 1, sent, updates)
    aspects["costs"] = (result.costs.bytes_up, result.costs.bytes_down, result.costs.multiply_adds)
    simulation.one_round(experiment, 2)
    aspects["merged"] = {n: v.clone() for n, v in server.state().items() if "prior" not in n}
    aspects["answers"] = logits(experiment)
    return aspects


def logits(experiment: Experiment) -> torch.Tensor:
    """The logits of a client that trains and of the held-out client, as in evaluation."""
    held_out = experiment.split.held_out
    clients = np.array([np.flatnonzero(~held_out)[0], np.flatnonzero(held_out)[0] if held_out.any() else 0])
    values = evaluation.personal(experiment, clients)
    with_prior = experiment.model.method.logit_prior in ("eval", "both")
    with torch.no_grad():
        return experiment.model.forward(values | experiment.server.read(), SAMPLES, with_prior).logits


def same(first: Any, second: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(first, torch.Tensor):
        if not isinstance(second, torch.Tensor) or first.shape != second.shape:
            return False
        return torch.allclose(first.double(), second.double(), rtol=1e-9, atol=1e-11, equal_nan=True)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    return bool(first == second)


def changed(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """The aspects in which two runs differ."""
    return {name for name in ASPECTS if not same(first[name], second[name])}
