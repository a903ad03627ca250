"""The learning rate over the rounds, the round that hooks read, and what the sweep file may say about both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import lr_scheduler

from fedbench.base.records import RunFolder
from fedbench.method import Method, Param, Task, linear_head
from fedbench.plan.config import ConfigError, LocalConfig, Sweep
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.plan.schedule import learning_rate
from fedbench.run import pack
from fedbench.run.simulation import begin, run_rounds, send

SCHEDULERS = {
    "constant": lambda o, rounds: lr_scheduler.ConstantLR(o, factor=1.0),
    "exponential": lambda o, rounds: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o, rounds: lr_scheduler.CosineAnnealingLR(o, rounds),
    "warmup": lambda o, rounds: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 1 / 4, 1.0, 3), lr_scheduler.CosineAnnealingLR(o, rounds - 4)], milestones=[4]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR's own call
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_schedule_is_that_of_torch_with_a_step_for_each_round(schedule):
    rounds, keys = 11, {"lr_decay": 0.9} if schedule == "exponential" else {}
    local = LocalConfig(lr=0.2, schedule=schedule, warmup_rounds=4, **keys)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = SCHEDULERS[schedule](optimizer, rounds)
    for round_ in range(1, rounds + 1):
        assert learning_rate(local, rounds, round_) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def sweep(folder: Path, plugin_folder: Path | None = None, **run: Any) -> Sweep:
    """Runs on 40 noise images of four classes."""
    draw = np.random.default_rng(0)
    path = folder / "noise.npz"
    if not path.exists():
        images = draw.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        np.savez(path, images=images, labels=np.arange(40) % 4, is_test=np.arange(40) >= 28)
    base = {
        "backbone": {"name": "nano_plain"},
        "dataset": {"name": "npz", "path": str(path)},
        "partition": {"name": "iid"},
        "method": "head_only",
        "clients": {"number": 3, "per_round": 2},
        "rounds": 3,
    }
    content = {"base": base | run, "machine": {"data": str(folder), "device": "cpu"}}
    return check_sweep(content, plugins([plugin_folder] if plugin_folder else []))


def test_a_run_sends_the_rate_of_its_round(tmp_path):
    sweep_ = sweep(tmp_path, local={"lr": 0.2, "schedule": "cosine"})
    (planned,) = sweep_.runs
    folder = RunFolder(tmp_path / planned.name)
    folder.plan(sweep_.on_disk(planned))
    state = begin(planned, sweep_.machine, sweep_.plugins, folder)
    assert [send(state.experiment, round_).training.lr for round_ in (1, 2, 3)] == pytest.approx([0.2, 0.15, 0.05])


def test_a_run_without_a_schedule_or_smoothing_has_the_name_that_it_had_before_them(tmp_path):
    (planned,) = sweep(tmp_path).runs
    assert "schedule" not in planned.identity["local"]
    assert "warmup_rounds" not in planned.identity["local"]
    assert "label_smoothing" not in planned.identity["local"]
    (same,) = sweep(tmp_path, local={"schedule": "exponential"}).runs
    (other,) = sweep(tmp_path, local={"schedule": "cosine"}).runs
    assert (same.key == planned.key, other.key == planned.key) == (True, False)
    (hard,), (smooth,) = (sweep(tmp_path, local={"label_smoothing": share}).runs for share in (0.0, 0.1))
    assert (hard.key == planned.key, smooth.key == planned.key) == (True, False)


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ({"schedule": "linear"}, r"local.schedule: Input should be 'constant', 'exponential', 'cosine' or 'warmup'"),
        ({"schedule": "cosine", "lr_decay": 0.9}, r"local.lr_decay: 0.9 has no effect with `schedule: cosine`"),
        ({"warmup_rounds": 2}, r"local.warmup_rounds: 2 has no effect with `schedule: exponential`"),
        ({"schedule": "warmup", "warmup_rounds": 3}, r"expected fewer than the run's 3 rounds, found 3"),
    ],
)
def test_a_mistake_in_a_schedule_gets_one_message(tmp_path, local, message):
    with pytest.raises(ConfigError, match=message) as raised:
        sweep(tmp_path, local=local)
    assert str(raised.value).count("local.") == 1


@dataclasses.dataclass(frozen=True)
class Timed(Method):
    """The gradient of w is the number of the round."""

    @property
    def uses_round(self) -> bool:
        return True

    def params(self, task: Task) -> dict[str, Param]:
        return linear_head(task, "server") | {"w": Param(torch.zeros(1))}

    def extra_loss(self, p: dict[str, Tensor], received: object, out: object, query: object) -> Tensor:
        return (p["round"] * p["w"]).sum()


def test_a_hook_reads_the_round_and_a_client_receives_it_as_four_bytes():
    small = tiny.mini_run(Timed(), momentum=0.0, weight_decay=0.0, clip=None, lr=0.1, epochs=1, batch_size=12)
    for round_ in (1, 2, 7):
        moved = small.round((1, 4), round_=round_).updated["w"]
        assert moved.flatten().tolist() == pytest.approx([-0.1 * round_] * 2)  # one step
    quiet = tiny.mini_run(dataclasses.replace(tiny.METHODS["head_only"]))
    assert "round" not in quiet.server.values
    head = 4 * (tiny.CLASSES * 32 + tiny.CLASSES)
    assert small.server.bytes_per_client() == (4, 4 + 4 + head)


AGGREGATION = '''"""The server's bias is the round, and its weights are the number of rounds."""
from dataclasses import dataclass
import torch
from fedbench import method


@dataclass(frozen=True)
class Aggregation(method.Aggregation):
    uses_round = True

    def params(self, spec, task):
        return {"total": method.Param(torch.tensor(float(task.rounds * task.local["epochs"])), "server_only")}

    def merge(self, server, updates, mean):
        return {
            "head.bias": torch.full_like(mean["head.bias"], server["round"].item()),
            "head.weight": torch.full_like(mean["head.weight"], server["total"].item()),
        }
'''


def test_an_aggregation_reads_the_round_and_the_recipe_also_after_a_restart(tmp_path):
    folder = tmp_path / "mine"
    (folder / "methods" / "aggregation").mkdir(parents=True)
    (folder / "methods" / "aggregation" / "clock.py").write_text(AGGREGATION)
    sweep_ = sweep(tmp_path, folder, aggregation="clock", local={"epochs": 2})
    (planned,) = sweep_.runs
    results = RunFolder(tmp_path / planned.name)
    results.plan(sweep_.on_disk(planned))
    run_rounds(planned, sweep_.machine, sweep_.plugins, results)
    state = load_file(results.path / "checkpoint.safetensors")
    assert state["server.head.bias"].unique().tolist() == [3.0]
    assert state["server.head.weight"].unique().tolist() == [6.0]
    assert begin(planned, sweep_.machine, sweep_.plugins, results).experiment.server.values["round"].item() == 3


def test_runs_of_a_pack_read_rounds_of_their_own():
    """Trainings of different rounds become rows of one graph, in which each reads its own round."""
    from fedbench.run.experiment import Training

    trainings = []
    for round_ in (2, 5):
        small = tiny.mini_run(Timed(), momentum=0.0, weight_decay=0.0, clip=None, lr=0.1, epochs=1, batch_size=12)
        first = small if not trainings else first  # noqa: F821 - the runs of a pack share the frozen parts
        batches = small.batches((1, 4), round_=round_)
        small.server.begin(round_)
        who = torch.from_numpy(batches[0].clients)
        received = small.server.send(who)
        trainer = dataclasses.replace(first.trainer)
        trainings.append(
            Training(
                trainer=trainer, clients=who, received=received, read=small.server.read(), batches=batches,
                samples=[3, 9], lr=0.1,
            )
        )  # fmt: skip
    updates = pack.train_together(trainings)
    assert [u.updated["w"].flatten().tolist() for u in updates] == [
        pytest.approx([-0.2] * 2),
        pytest.approx([-0.5] * 2),
    ]
