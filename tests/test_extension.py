"""A run with more rounds continues a finished shorter run, with the numbers of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_schedule import AGGREGATION, sweep

from fedbench.base.record_schema import EXECUTION
from fedbench.base.records import RunFolder
from fedbench.method import Param
from fedbench.run import extension, simulation
from fedbench.run.simulation import run_rounds

BASE: dict[str, Any] = {
    "aggregation": "scaffold",  # with values of clients and of the server
    "method": {"name": "fedvpt", "prompt_length": 2, "prompt": "local"},
    "evaluate_every": 2,
}


def done(results: Path, folder: Path, plugin_folder: Path | None = None, **run: Any) -> RunFolder:
    """The folder of a run that is done."""
    sweep_ = sweep(folder, plugin_folder, **(BASE | run))
    (planned,) = sweep_.runs
    made = RunFolder(results / planned.name)
    made.plan(sweep_.on_disk(planned))
    made.finish(run_rounds(planned, sweep_.machine, sweep_.plugins, made))
    return made


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that are trained, in order."""
    rounds: list[int] = []
    one_round = simulation.one_round
    monkeypatch.setattr(simulation, "one_round", lambda e, round_: rounds.append(round_) or one_round(e, round_))
    return rounds


def test_more_rounds_continue_a_finished_run_with_the_numbers_of_one_run(tmp_path, trained):
    whole = done(tmp_path / "whole", tmp_path, rounds=5)
    for rounds in (3, 1):  # the longest is continued
        done(tmp_path / "parts", tmp_path, rounds=rounds)
    trained.clear()
    longer = done(tmp_path / "parts", tmp_path, rounds=5)
    assert trained == [4, 5]
    assert longer.path.name == whole.path.name
    for expected, record in zip(whole.records(), longer.records(), strict=True):
        assert {k: v for k, v in record.items() if k not in EXECUTION} == {
            k: v for k, v in expected.items() if k not in EXECUTION
        }
    assert [record["round"] for record in longer.records()] == [2, 4, 5]  # without the last one of the shorter run
    first, second = (load_file(folder.path / "checkpoint.safetensors") for folder in (whole, longer))
    assert all(torch.equal(first[name], second[name]) for name in first if name != "total.seconds")
    assert not longer.damage()


def test_parameters_are_equal_if_they_start_every_client_alike():
    start, other = torch.arange(3.0), torch.tensor([0.0, 1, 3])

    def of(init: torch.Tensor = start, changed: int = -1, rows: bool = True) -> Param:
        return Param(init, "local", rows=(lambda k: (k == changed).float()[:, None] + init) if rows else None)

    assert extension._equal(of(rows=False), of(start.clone(), rows=False), 300)
    assert extension._equal(of(changed=7), of(changed=7), 300)
    assert not extension._equal(of(rows=False), of(other, rows=False), 300)
    assert not extension._equal(of(rows=False), of(start[:, None], rows=False), 300)
    assert not extension._equal(of(), of(rows=False), 300)
    assert not extension._equal(of(rows=False), of(), 300)
    for changed in (0, 255, 256, 299):
        assert not extension._equal(of(), of(changed=changed), 300)
    assert extension._equal(of(), of(changed=300), 300)  # there is no such client


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"local": {"schedule": "cosine"}}, "its learning rates depend on the number of rounds (schedule cosine)"),
        ({"aggregation": "clock"}, "total depend on the number of rounds"),  # whose value is the number of rounds
        ({"evaluate_every": 1}, "it has not evaluated round 1"),
    ],
    ids=["schedule", "Task.rounds", "evaluate_every"],
)
def test_a_run_that_depends_on_its_rounds_or_lacks_a_record_is_not_continued(tmp_path, trained, caplog, run, why):
    plugin_folder = tmp_path / "mine"
    (plugin_folder / "methods" / "aggregation").mkdir(parents=True)
    (plugin_folder / "methods" / "aggregation" / "clock.py").write_text(AGGREGATION)
    common = {"method": "head_only", "aggregation": "fedavg"}
    shorter = done(tmp_path / "results", tmp_path, plugin_folder, **(common | run | {"rounds": 2, "evaluate_every": 2}))
    trained.clear()
    with caplog.at_level("INFO", "fedbench"):
        done(tmp_path / "results", tmp_path, plugin_folder, **(common | run | {"rounds": 3}))
    assert trained == [1, 2, 3]
    assert [m for m in caplog.messages if "continue" in m] == [f"{shorter.path.name} is not continued: {why}"]


def test_a_damaged_or_other_run_is_not_continued(tmp_path, trained, caplog):
    common = {"method": "head_only", "aggregation": "fedavg"}
    shorter = done(tmp_path / "results", tmp_path, rounds=2, **common)
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (shorter.path / name).unlink(missing_ok=True)
    done(tmp_path / "results", tmp_path, rounds=2, seed=1, **common)
    trained.clear()
    with caplog.at_level("INFO", "fedbench"):
        done(tmp_path / "results", tmp_path, rounds=3, **common)
    assert trained == [1, 2, 3]
    why = "its last checkpoint is missing or damaged"
    assert [m for m in caplog.messages if "continue" in m] == [f"{shorter.path.name} is not continued: {why}"]
