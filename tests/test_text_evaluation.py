"""Methods with text are evaluated with the texts of each client, and of the server's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from fedbench.base.records import RunFolder
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.evaluation import accuracies
from fedbench.run.simulation import begin, one_round


@pytest.mark.parametrize(
    "method", ["promptfl", "fedtpg", {"name": "fedvpt_text", "context_length": 2}, "pep_fedpt_text"]
)
@pytest.mark.parametrize("aggregation", ["topk", "scaffold"])
def test_the_models_of_clients_and_of_the_server_are_tested_in_one_pass_also_beside_clients_memory(
    tmp_path: Path, method: Any, aggregation: str
) -> None:
    """Clients test together what the server's model is tested on, and keep values of the aggregation."""
    draw, names = np.random.default_rng(0), np.array(["alpha", "beta", "gamma"])
    images = draw.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "t.npz", images=images, labels=np.arange(30) % 3, is_test=np.arange(30) >= 18, class_names=names
    )
    base = {
        "backbone": tiny.write_two_towers(tmp_path / "b.safetensors"),
        "dataset": {"name": "npz", "path": str(tmp_path / "t.npz")},
        "partition": {"name": "iid", "min_train": 2},
        "method": method,
        "aggregation": aggregation,
        "clients": {"number": 3, "per_round": 2, "validation": 0},
        "local": {"lr": 0.1},
        "rounds": 1,
    }
    sweep = check_sweep({"base": base, "machine": {"data": str(tmp_path), "device": "cpu"}}, plugins())
    folder = RunFolder(tmp_path / "run")
    folder.plan(sweep.on_disk(sweep.runs[0]))
    state = begin(sweep.runs[0], sweep.machine, sweep.plugins, folder)
    state.close(one_round(state.experiment, 1), lambda: False)
    (record,) = folder.records()
    experiment = state.experiment
    whole = [np.flatnonzero(experiment.samples.is_test)]
    alone = accuracies(experiment.model, experiment.server.unseen_client(), experiment.server.read(), whole, 4)
    assert record["global_accuracy"] == pytest.approx(alone.each[0])
