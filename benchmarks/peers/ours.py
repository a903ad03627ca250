"""System: fedbench as a job runs it, with records and checkpoints; the other systems get its cohorts and batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.models import register_model

from benchmarks.peers import model
from benchmarks.peers.task import CONTEXT, VALUES, Log, Values
from fedbench.base.records import RunFolder
from fedbench.jobs import job
from fedbench.plan.config import Sweep
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run import checkpoint, evaluation, simulation

ARCHITECTURE: dict[str, Any] = {}  # of the current task: fedbench names a backbone only, and timm makes it


@register_model
def peers_vit(**_: Any) -> Any:
    """The task's ViT, with random weights."""
    return model.backbone(ARCHITECTURE)


def backbone_name(case: Mapping[str, Any], folder: Path) -> str:
    """The name of the case's backbone after its registration: with timm for FedVPT, and with open_clip for PromptFL."""
    if case["method"] == "promptfl":
        from benchmarks.peers import clip_model  # so that FedVPT does not import open_clip

        clip_model.register(case["architecture"], folder)
        return f"open_clip/{clip_model.NAME}"
    ARCHITECTURE.clear()
    ARCHITECTURE.update(case["architecture"])
    return str(peers_vit.__name__)


def sweep(folder: Path) -> Sweep:
    """The sweep of one run that `folder` describes."""
    case: Mapping[str, Any] = json.loads((folder / "case.json").read_text())
    length = "context_length" if case["method"] == "promptfl" else "prompt_length"
    content = {
        "base": {
            "backbone": {"name": backbone_name(case, folder), "weights": str(folder / "weights.safetensors")},
            "dataset": {"name": "npz", "path": str(folder / "data.npz")},
            "partition": "natural",
            "method": {"name": case["method"], length: case["prompts"]},
            "rounds": case["rounds"],
            "evaluate_every": case["evaluate_every"],
            "clients": {"number": case["clients"], "per_round": case["per_round"], "validation": 0.0},
            "local": {"batch_size": case["batch"], "lr": case["lr"], "momentum": 0.0},
        },
        "machine": {"data": str(folder / "cache"), "device": "cpu"},
        "cluster": {"cpus": torch.get_num_threads()},
    }
    return check_sweep(content, plugins())


def run(folder: Path, log: Log) -> Values:
    """Train and evaluate; returns the final values, read from the run's checkpoint."""
    plan = sweep(folder)
    planned = plan.runs[0]
    results = RunFolder(folder / "results" / planned.name)
    results.plan(plan.on_disk(planned))

    def timed(work: Callable[..., Any], around: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            log.step()
            with around():
                return work(*args)

        return call

    with (
        mock.patch.object(simulation, "one_round", timed(simulation.one_round, log.round)),
        mock.patch.object(evaluation, "evaluate", timed(evaluation.evaluate, log.evaluation)),
    ):
        job.run_job(results.path.parent, [planned.name])
    if results.status != "done":
        raise RuntimeError(f"fedbench's run failed:\n{results.log.read_text()[-3000:]}")
    tests = json.loads((folder / "case.json").read_text())["tests"]
    log.right = [round(record["pooled_accuracy"] * tests) for record in results.records()]
    saved = checkpoint.load(results.path)
    if saved is None:
        raise RuntimeError(f"{results.path} holds no checkpoint")
    state = saved.state
    names = CONTEXT if planned.run.method["name"] == "promptfl" else VALUES
    values: Values = {name: state[f"server.{name}"].numpy() for name in names}
    return values | class_texts(folder, values)


@torch.no_grad()
def class_texts(folder: Path, values: Values) -> Values:
    """The features [C, E] of class names behind the final contexts, from fedbench's text tower; nothing without contexts."""
    if "context" not in values:
        return {}
    from fedbench.text.class_texts import ClassTexts, text_side

    block = sweep(folder).runs[0].run.backbone
    side = text_side(block.name, block.weights, block.template, torch.device("cpu"), torch.float32)
    with np.load(folder / "data.npz") as data:
        texts = ClassTexts.of(side, data["class_names"].tolist())
    return {"class_texts": texts.features(torch.from_numpy(values["context"])[None])[0].numpy()}
