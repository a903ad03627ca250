"""System: fedbench as a job runs it, with records and checkpoints; the other systems get its cohorts and batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.models import register_model

from benchmarks.peers import model
from benchmarks.peers.task import VALUES, Log, Values
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


def sweep(folder: Path) -> Sweep:
    """The sweep of one run that `folder` describes; its backbone is registered with timm as `peers_vit`."""
    case: Mapping[str, Any] = json.loads((folder / "case.json").read_text())
    ARCHITECTURE.clear()
    ARCHITECTURE.update(case["architecture"])
    content = {
        "base": {
            "backbone": {"name": peers_vit.__name__, "weights": str(folder / "vit.safetensors")},
            "dataset": {"name": "npz", "path": str(folder / "data.npz")},
            "partition": "natural",
            "method": {"name": "fedvpt", "prompt_length": case["prompts"]},
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
    return {name: state[f"server.{name}"].numpy() for name in VALUES}
