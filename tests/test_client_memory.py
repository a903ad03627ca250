"""Client memory: only clients that took part have rows, and initial values are the same in any cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_simulation import data, numbers, run, sweep  # noqa: F401 - data is a fixture

from fedbench.method import Param, Task
from fedbench.run import evaluation
from fedbench.run.client_memory import ClientMemory
from fedbench.run.experiment import build
from fedbench.run.simulation import one_round

DEVICE = torch.device("cpu")


def spec() -> dict[str, Param]:
    task = Task(3, 10, 4, 2, 8, torch.ones(10, 3), seed=5)
    return {
        "same": Param(torch.arange(3.0), "local"),
        "own": Param(torch.zeros(2), "local", rows=task.per_client_normal("own", 2, std=1.0)),
        "shared": Param(torch.zeros(7)),
    }


def test_only_clients_that_were_written_have_a_row():
    memory = ClientMemory(spec(), DEVICE, torch.float32)
    assert memory.state() == {}
    before = memory.read(torch.tensor([4, 9]))
    assert set(before) == {"same", "own"}
    assert torch.equal(before["same"], torch.arange(3.0).expand(2, 3))
    written = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    memory.write(torch.tensor([9, 2]), "same", written)
    written += 100  # the memory copies what it stores
    memory.write(torch.tensor([9]), "own", torch.ones(1, 2, requires_grad=True))  # and keeps no graph
    assert not any(row.requires_grad for row in memory.state().values())
    memory.restore({name: row for name, row in memory.state().items() if "own" not in name})
    assert set(memory.state()) == {"client.same.9", "client.same.2"}
    after = memory.read(torch.tensor([2, 4, 9]))["same"]
    assert after.tolist() == [[4, 5, 6], [0, 1, 2], [1, 2, 3]]
    after += 100  # and what it returns
    assert memory.read(torch.tensor([2, 4, 9]))["same"].tolist() == [[4, 5, 6], [0, 1, 2], [1, 2, 3]]
    assert torch.equal(memory.read(torch.tensor([4, 9]))["own"], before["own"])


def test_a_row_depends_on_its_client_alone():
    whole = ClientMemory(spec(), DEVICE, torch.float64).read(torch.arange(10))["own"]
    assert whole.dtype == torch.float64
    assert len({tuple(row) for row in whole.tolist()}) == 10
    for cohort in ([3], [7, 3], [0, 9, 3, 5]):
        some = ClientMemory(spec(), DEVICE, torch.float64).read(torch.tensor(cohort))["own"]
        assert torch.equal(some, whole[cohort])


def test_state_and_restore_are_inverse():
    memory, other = (ClientMemory(spec(), DEVICE, torch.float32) for _ in range(2))
    memory.write(torch.tensor([1, 8]), "own", torch.randn(2, 2))
    memory.write(torch.tensor([8]), "same", torch.randn(1, 3))
    other.write(torch.tensor([0]), "same", torch.randn(1, 3))  # is replaced by restore
    other.restore(memory.state())
    everyone = torch.arange(10)
    for name, value in memory.read(everyone).items():
        assert torch.equal(value, other.read(everyone)[name])
    with pytest.raises(ValueError, match="local values 'prompt', which this run does not have"):
        memory.restore({"client.prompt.3": torch.zeros(2)})


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"name": "fedvpt", "prompt": "local"}, marks=pytest.mark.slow),
        pytest.param({"name": "fedvpt", "finetune_epochs": 1}, marks=pytest.mark.slow),
        "fedvpt",
    ],
)
def test_blocks_of_clients_change_no_number(data: Path, tmp_path: Path, monkeypatch: Any, method: Any) -> None:  # noqa: F811
    plan = sweep(data, [method], precision="float64")
    whole = run(plan.runs[0], plan, tmp_path / "whole")
    monkeypatch.setattr(evaluation, "BLOCK_BYTES", 1)  # each block holds one client
    blocks = run(plan.runs[0], plan, tmp_path / "blocks")
    for a, b in zip(numbers(whole), numbers(blocks), strict=True):
        assert a == pytest.approx(b, abs=1e-9)
    first, second = (pd.read_parquet(folder.path / "clients.parquet") for folder in (whole, blocks))
    pd.testing.assert_frame_equal(first, second)


def test_a_population_costs_what_its_cohorts_cost(tmp_path: Path) -> None:
    """3,000 users of four images: two rounds of three clients leave rows of at most six clients."""
    count = 3000
    user = np.repeat(np.arange(count), 4)
    images = np.random.default_rng(0).integers(0, 256, (len(user), 1, 1, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).permutation(len(user)) % 5
    np.savez(tmp_path / "many.npz", images=images, labels=labels, is_test=np.arange(len(user)) % 4 == 3, user=user)
    plan = sweep(
        tmp_path / "many.npz",
        [{"name": "fedvpt", "prompt": "local", "head": "local", "own_init": True}],
        partition="natural",
        clients={"number": count, "per_round": 3},
    )
    experiment = build(plan.runs[0], plan.machine, plan.plugins)
    cohorts = [set(experiment.cohort_of(round_).tolist()) for round_ in (1, 2)]
    for round_ in (1, 2):
        one_round(experiment, round_)
    state = experiment.server.state()
    rows = {name for name in state if name.startswith("client.")}
    expected = set.union(*cohorts)
    assert rows == {f"client.{n}.{k}" for n in ("prompt", "head.weight", "head.bias") for k in expected}
    size = sum(value.numel() for value in state.values())
    assert size == len(expected) * (8 * 128 + 5 * 128 + 5) + count  # and which clients have reported statistics
