"""Runs that differ only in evaluation are trained once, and each gets exactly the same numbers as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_pack import write_images

from fedbench.base.records import MEASURED, RunFolder
from fedbench.cli.sweep import plan
from fedbench.jobs import job
from fedbench.jobs.grouping import neighbours_in_a_slot, training_groups
from fedbench.jobs.stop_request import stop_request
from fedbench.jobs.supervisor import assign_slots
from fedbench.plan.config import Sweep
from fedbench.plan.identity import training_key
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.experiment import Training
from fedbench.run.simulation import Stopped

ROUNDS = 3
VARIANTS = [{}, {"logit_prior": "eval"}, {"finetune_epochs": 1}]  # of one training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "tiny.npz")


def sweep(data: Path, methods: list[dict[str, Any]], **machine: Any) -> Sweep:
    """One run for each of `methods`."""
    content = {
        "base": {
            "dataset": {"name": "npz", "path": str(data)},
            "partition": {"name": "dirichlet", "alpha": 1.0, "min_train": 2},
            "clients": {"number": 5, "per_round": 3, "held_out": 1},
            "rounds": ROUNDS,
            "evaluate_every": 1,
            "local": {"batch_size": 4, "lr": 0.02},
        },
        "grid": {"method": methods, "seed": [0]},
        "machine": {"data": str(data.parent), **machine},
    }
    return check_sweep(content, plugins())


def start(planned_sweep: Sweep, results: Path) -> list[str]:
    results.mkdir(exist_ok=True)
    return plan(planned_sweep, results, False, "test")


def records(planned_sweep: Sweep, results: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of all runs, each of which is done, without what a clock says."""
    folders = [RunFolder(results / planned.name) for planned in planned_sweep.runs]
    assert [folder.status for folder in folders] == ["done"] * len(folders)
    return {
        folder.path.name: [{k: v for k, v in record.items() if k not in MEASURED} for record in folder.records()]
        for folder in folders
    }


def do_one_by_one(planned_sweep: Sweep, results: Path) -> dict[str, list[dict[str, Any]]]:
    for name in start(planned_sweep, results):
        job.run_job(results, [name])
    return records(planned_sweep, results)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The streams of all trainings of cohorts, without fine-tuning, as they begin."""
    done: list[str] = []
    train = Training.train

    def counted(self: Training) -> Any:
        if not self.trainer.finetuning:
            done.append(type(self.trainer.model.method).__module__)
        return train(self)

    monkeypatch.setattr(Training, "train", counted)
    return done


# fedrep trains in phases and keeps a local head, pep_fedpt reads the prior in training, full_finetune has backbones of its own
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fedvpt", "fedrep", "full_finetune")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pep_fedpt", *SLOW])
def test_variants_in_evaluation_share_one_training_and_keep_their_own_numbers(name, data, tmp_path, trainings):
    planned_sweep = sweep(data, [{"name": name, "finetune_epochs": 0, **variant} for variant in VARIANTS])
    alone = do_one_by_one(planned_sweep, tmp_path / "alone")
    assert len(trainings) == 3 * ROUNDS
    trainings.clear()
    job.run_job(tmp_path / "together", start(planned_sweep, tmp_path / "together"))
    assert len(trainings) == ROUNDS
    together = records(planned_sweep, tmp_path / "together")
    assert together == alone  # to the last bit
    plain, prior, tuned = ([record["mean_accuracy"] for record in together[run.name]] for run in planned_sweep.runs)
    assert plain != prior  # the variants do differ
    assert plain != tuned


def test_runs_whose_training_differs_share_nothing(data, tmp_path, trainings):
    methods = [{"name": "fedvpt"}, {"name": "fedvpt", "logit_prior": "train"}, {"name": "fedvpt", "prompt_length": 3}]
    planned_sweep = sweep(data, methods)
    assert len({training_key(planned.identity) for planned in planned_sweep.runs}) == 3
    job.run_job(tmp_path / "results", start(planned_sweep, tmp_path / "results"))
    assert len(trainings) == 3 * ROUNDS


def test_runs_that_evaluate_more_often_share_the_training(data, tmp_path, trainings):
    rarely = {"name": "fedvpt", "label": "rarely", "with": {"evaluate_every": ROUNDS}}
    planned_sweep = sweep(data, [{"name": "fedvpt"}, rarely])
    job.run_job(tmp_path / "results", start(planned_sweep, tmp_path / "results"))
    assert len(trainings) == ROUNDS
    often, seldom = records(planned_sweep, tmp_path / "results").values()
    assert [record["round"] for record in often] == [1, 2, 3]
    assert [record["round"] for record in seldom] == [3]
    assert often[-1]["mean_accuracy"] == seldom[-1]["mean_accuracy"]


def test_both_priors_share_the_training_of_the_train_prior(data, tmp_path, trainings):
    planned_sweep = sweep(data, [{"name": "fedvpt", "logit_prior": prior} for prior in ("train", "both")])
    alone = do_one_by_one(planned_sweep, tmp_path / "alone")
    trainings.clear()
    job.run_job(tmp_path / "together", start(planned_sweep, tmp_path / "together"))
    assert len(trainings) == ROUNDS
    assert records(planned_sweep, tmp_path / "together") == alone


@pytest.mark.slow
def test_a_run_that_is_behind_catches_up_before_the_training_is_shared(data, tmp_path, trainings, monkeypatch):
    planned_sweep = sweep(data, [{"name": "fedvpt"}, {"name": "fedvpt", "logit_prior": "eval"}])
    alone = do_one_by_one(planned_sweep, tmp_path / "alone")
    results = tmp_path / "together"
    names = start(planned_sweep, results)
    report = RunFolder.report_progress

    def report_and_stop(self: RunFolder, **progress: Any) -> None:
        report(self, **progress)
        stop_request.received = True

    monkeypatch.setattr(RunFolder, "report_progress", report_and_stop)
    with pytest.raises(Stopped):
        job.run_job(results, names[:1])  # one round of the first run alone
    monkeypatch.undo()
    stop_request.received = False
    counted: list[int] = []
    train = Training.train
    monkeypatch.setattr(Training, "train", lambda self: counted.append(1) or train(self))
    job.run_job(results, names)
    assert len(counted) == 1 + (ROUNDS - 1)  # the second run's first round, then both together
    assert records(planned_sweep, results) == alone


def test_without_shortcuts_every_run_trains_alone(data, tmp_path, trainings):
    planned_sweep = sweep(data, [{"name": "fedvpt"}, {"name": "fedvpt", "logit_prior": "eval"}], shortcuts=False)
    job.run_job(tmp_path / "results", start(planned_sweep, tmp_path / "results"))
    assert len(trainings) == 2 * ROUNDS
    assert [len(group) for group in training_groups(planned_sweep, [run.name for run in planned_sweep.runs])] == [1, 1]


def test_one_worker_gets_all_runs_of_a_training(data):
    methods = [{"name": name, "logit_prior": prior} for prior in ("none", "eval") for name in ("fedvpt", "fedrep")]
    planned_sweep = sweep(data, methods)
    names = [run.name for run in planned_sweep.runs]
    groups = training_groups(planned_sweep, [*names, "a run of another sweep"])
    assert groups == [(names[0], names[2]), (names[1], names[3]), ("a run of another sweep",)]
    first, second = assign_slots(groups, 2, None)
    assert first.names == (names[0], names[2], "a run of another sweep")
    assert second.names == (names[1], names[3])
    assert first.spare == (names[3], names[1])


def test_a_worker_gets_neighbouring_runs_of_a_pack(data):
    """Two methods with three rates each, the rate varying slowest: each of two workers gets one method's pack."""
    methods = [{"name": name, "with": {"local.lr": rate}} for rate in (0.1, 0.2, 0.3) for name in ("fedvpt", "fedrep")]
    planned_sweep = sweep(data, methods, pack=True)
    names = [run.name for run in planned_sweep.runs]
    groups = training_groups(planned_sweep, names)
    assert [group[0] for group in groups] == [*names[0::2], *names[1::2]]
    slots = assign_slots(neighbours_in_a_slot(groups, 2), 2, None)
    assert [slot.names for slot in slots] == [tuple(names[0::2]), tuple(names[1::2])]
    assert neighbours_in_a_slot([("a",), ("b",), ("c",)], 2) == [("a",), ("c",), ("b",)]
