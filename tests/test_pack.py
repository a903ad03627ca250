"""Runs that are trained together get the same numbers as alone, and a failure of one does not affect the others."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedbench.base.records import MEASURED, RunFolder
from fedbench.cli.sweep import plan
from fedbench.jobs import job
from fedbench.jobs.stop_request import stop_request
from fedbench.plan.config import Sweep
from fedbench.plan.identity import pack_key, training_key
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run import pack
from fedbench.run.meter import SharedClock
from fedbench.run.simulation import begin, one_round, receive, send
from fedbench.vit.backbone import Backbone

CLASSES = plugins().classes
LOCAL = {"name": "fedvpt", "prompt": "local"}
CASES: dict[str, dict[str, Any]] = {name: {"method": name} for name in CLASSES["method"]}
CASES |= {
    name: case | {"backbone": {"name": "clip_nano"}}
    for name, case in CASES.items()
    if CLASSES["method"][name].reads_text
}
CASES |= {f"fedvpt+{name}": {"method": "fedvpt", "aggregation": name} for name in CLASSES["aggregation"]}
CASES |= {f"local+{name}": {"method": LOCAL, "aggregation": name} for name in CLASSES["aggregation"]}
# Each of another structure: shared values, a client's own in phases, read of the server, made by it, sums, gradients.
QUICK = ("fedvpt", "fedrep", "pep_fedpt", "pfedpg", "local+scaffold")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "tiny.npz")


def write_images(path: Path) -> Path:
    """64 images of 4 classes, a quarter of them test images."""
    labels = np.arange(64) % 4
    images = np.random.default_rng(0).integers(0, 90, (64, 32, 32, 3)) + 40 * labels[:, None, None, None]
    names = np.array(["greek small letter alpha", "latin small letter o", "digit four", "georgian letter man"])
    np.savez(path, images=images.astype(np.uint8), labels=labels, is_test=np.arange(64) % 16 < 4, class_names=names)
    return path


def sweep(data: Path, base: dict[str, Any], grid: dict[str, Any] | None = None, **machine: Any) -> Sweep:
    """Runs that differ in seed, split and clients."""
    content = {
        "base": {
            "dataset": {"name": "npz", "path": str(data)},
            "rounds": 3,
            "evaluate_every": 3,
            "local": {"batch_size": 4, "lr": 0.02, "augment": "crop_flip", "clip": 1.0},
            "precision": "float64",
            **base,
        },
        "grid": {
            "partition": [{"name": "dirichlet", "alpha": 1.0, "min_train": 2}, {"name": "quantity", "sigma": 0.7}],
            "clients": [{"number": 6, "per_round": 3, "held_out": 1}, {"number": 4, "per_round": 2}],
            "seed": [0],
            **(grid or {}),
        },
        "machine": {"data": str(data.parent), "pack": True, **machine},
    }
    return check_sweep(content, plugins())


def lives(sweep_: Sweep, results: Path, each: int = 3) -> list[Any]:
    """Every third of the runs, so that of four there are two, which differ in split and clients."""
    made = []
    for planned in sweep_.runs[::each]:
        folder = RunFolder(results / planned.name)
        folder.plan(sweep_.on_disk(planned))
        made.append(begin(planned, sweep_.machine, sweep_.plugins, folder))
    return made


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_the_numbers_are_those_of_each_run_alone(case, data, tmp_path, monkeypatch):
    sweep_ = sweep(data, CASES[case])
    alone, together = lives(sweep_, tmp_path / "alone"), lives(sweep_, tmp_path / "together")
    passes: list[int] = []
    forward = Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, x, *rest, **more: passes.append(len(x)) or forward(self, x, *rest, **more)
    )
    for round_ in (1, 2):
        passes.clear()
        expected = [one_round(state.experiment, round_) for state in alone]
        single = list(passes)
        passes.clear()
        sent = [send(state.experiment, round_) for state in together]
        reports = pack.train_together([round_sent.training for round_sent in sent])
        joint = list(passes)
        spent = [
            receive(state.experiment, round_, round_sent, report)
            for state, round_sent, report in zip(together, sent, reports, strict=True)
        ]
        for a, b in zip(expected, spent, strict=True):
            assert vars(b.costs) == pytest.approx(vars(a.costs), abs=1e-9)
        method = together[0].experiment.model.method
        if together[0].experiment.trainer.phases and method.backbone_weights is None and method.touches(12):
            assert len(joint) < len(single) or round_ > 1  # then a server's values may have a shape of their own
    for a, b in zip(alone, together, strict=True):
        expected_state, state = a.experiment.server.state(), b.experiment.server.state()
        assert expected_state.keys() == state.keys()
        for name, value in expected_state.items():
            # PFPT's matching is solved by iteration, which a rounding leads another way
            near = {"rtol": 1e-5, "atol": 1e-7} if case == "pfpt" else {"rtol": 1e-8, "atol": 1e-9}
            torch.testing.assert_close(state[name], value, **near, msg=lambda m, name=name: f"{name}: {m}")


RECIPES = {
    "sgd": {"method": "fedvpt"},
    "momentum": {"method": "fedrep", "local": {"momentum": 0.9, "weight_decay": 0.1}},  # in phases
    "adam": {"method": "fedvpt", "local": {"optimizer": "adam", "weight_decay": 0.1}},
    "adamw": {"method": "fedvpt", "local": {"optimizer": "adamw", "weight_decay": 0.1}},
    "steered": {"method": "apfl"},
    "at the server": {"method": "fedvpt", "aggregation": {"name": "fedavgm"}},
    "against drift": {"method": "fedvpt", "aggregation": {"name": "scaffold"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_have_rates_of_their_own(recipe, data, tmp_path, monkeypatch):
    base = RECIPES[recipe] | {"local": {"batch_size": 4, "augment": "crop_flip", **RECIPES[recipe].get("local", {})}}
    grid = {
        "local.lr": [0.02, 0.003],
        "local.clip": [None, 0.5],
        "local.lr_decay": [1.0, 0.5],
        "aggregation.lr": [1.0, 0.5],
    }
    if (
        "aggregation" not in base or recipe == "against drift"
    ):  # an aggregation that has a say in training must be the same
        grid.pop("aggregation.lr")
    sweep_ = sweep(data, base, grid)
    alone, together = (lives(sweep_, tmp_path / name, 5) for name in ("alone", "together"))
    assert len({(state.experiment.run.local.lr, state.experiment.run.local.clip) for state in alone}) == 4
    assert len({pack_key(planned.identity) for planned in sweep_.runs}) == 1
    trained = []
    monkeypatch.setattr(pack, "_train", lambda ts, train=pack._train: trained.append(len(ts)) or train(ts))
    for round_ in (1, 2):
        expected = [one_round(state.experiment, round_) for state in alone]
        sent = [send(state.experiment, round_) for state in together]
        reports = pack.train_together([round_sent.training for round_sent in sent])
        for state, round_sent, report, spent in zip(together, sent, reports, expected, strict=True):
            assert report.lr == round_sent.training.lr
            costs = receive(state.experiment, round_, round_sent, report).costs
            assert vars(costs) == pytest.approx(vars(spent.costs), abs=1e-9)
    assert trained == [len(alone)] * 2
    for a, b in zip(alone, together, strict=True):
        expected_state, state = a.experiment.server.state(), b.experiment.server.state()
        for name, value in expected_state.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-9)


def test_the_members_of_a_pack_go_from_round_to_round_as_each_run_alone(data, tmp_path):
    sweep_ = sweep(data, {"method": "fedvpt", "rounds": 2, "evaluate_every": 2})
    alone, together = lives(sweep_, tmp_path / "alone"), lives(sweep_, tmp_path / "together")
    for state in alone:
        while not state.over:
            state.close(one_round(state.experiment, state.rounds_done + 1), lambda: False)
    members = [pack.Member(state, SharedClock(), lambda: False, nullcontext) for state in together]
    while not all(member.state.over for member in members):
        for member in members:
            member.send()
        reports = pack.train_together([member.sent.training for member in members if member.sent])
        for member, report in zip(members, reports, strict=True):
            member.receive(report)
    for a, b in zip(alone, together, strict=True):
        rows = [[{k: v for k, v in row.items() if k not in MEASURED} for row in x.folder.records()] for x in (a, b)]
        assert [row["round"] for row in rows[0]] == [2]
        assert rows[1] == [pytest.approx(row, abs=1e-9) for row in rows[0]]


def test_each_gets_its_part_of_the_time(data, tmp_path):
    first, last = lives(sweep(data, {"method": "fedvpt"}), tmp_path)
    trainings = [send(state.experiment, 1).training for state in (first, last)]
    shares = [SharedClock(), SharedClock()]
    pack.train_together(trainings, shares)
    samples = [sum(training.samples) for training in trainings]
    assert samples[0] != samples[1]
    assert shares[0].seconds / shares[1].seconds == pytest.approx(samples[0] / samples[1])


def test_runs_that_do_not_fit_are_not_trained_together(data, tmp_path):
    states = [
        *lives(sweep(data, {"method": "fedvpt"}), tmp_path),
        *lives(sweep(data, {"method": {"name": "fedvpt", "prompt_length": 3}}), tmp_path),
        *lives(sweep(data, {"method": "head_only"}), tmp_path),
    ]
    reports = pack.train_together([send(state.experiment, 1).training for state in states])
    for state, report in zip(states, reports, strict=True):
        alone = send(state.experiment, 1).training.train()
        for name, value in alone.updated.items():
            torch.testing.assert_close(report.updated[name], value, rtol=1e-9, atol=1e-12)


# -- as a job does it ----------------------------------------------------------------------------------------------------
def done(sweep_: Sweep, results: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of all runs without what a clock says."""
    folders = [RunFolder(results / planned.name) for planned in sweep_.runs]
    assert [folder.status for folder in folders] == ["done"] * len(folders)
    return {
        folder.path.name: [{k: v for k, v in record.items() if k not in MEASURED} for record in folder.records()]
        for folder in folders
    }


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        for a, b in zip(first[name], second[name], strict=True):
            assert a == pytest.approx(b, abs=1e-9)


@pytest.fixture(scope="module")
def quiet(data, tmp_path_factory):
    """The records of the sweep with each run by itself."""
    results = tmp_path_factory.mktemp("alone") / "results"
    sweep_ = sweep(data, {"method": "fedvpt"}, pack=False)
    job.run_job(results, planned(sweep_, results))
    return done(sweep_, results)


def planned(sweep_: Sweep, results: Path) -> list[str]:
    results.mkdir(exist_ok=True)
    return plan(sweep_, results, False, "test")


def packed(data: Path) -> Sweep:
    return sweep(data, {"method": "fedvpt"})


@pytest.mark.slow
def test_a_job_does_what_can_be_done_together(data, tmp_path, quiet):
    sweep_ = packed(data)
    job.run_job(tmp_path / "results", planned(sweep_, tmp_path / "results"))
    same(done(sweep_, tmp_path / "results"), quiet)
    for run in sweep_.runs:
        folder = RunFolder(tmp_path / "results" / run.name)
        assert json.loads((folder.path / "env.json").read_text())["pack"] == 4
        log = folder.log.read_text()
        assert "done" in log
        assert not any(other.name in log for other in sweep_.runs if other.name != run.name)
        assert not folder.notes()


@pytest.mark.slow
def test_one_that_fails_leaves_and_is_tried_alone(data, tmp_path, quiet, monkeypatch):
    sweep_, before = packed(data), pack.receive
    failing = sweep_.runs[2]

    def receive_once(experiment: Any, round_: int, *rest: Any) -> Any:
        if experiment.facts.config_hash.startswith(failing.key) and round_ == 2:
            raise RuntimeError("planted")
        return before(experiment, round_, *rest)

    monkeypatch.setattr(pack, "receive", receive_once)
    job.run_job(tmp_path / "results", planned(sweep_, tmp_path / "results"))
    same(done(sweep_, tmp_path / "results"), quiet)
    for run in sweep_.runs:
        log = RunFolder(tmp_path / "results" / run.name).log.read_text()
        assert ("leaving the pack after round 1: planted" in log) == (run is failing)


@pytest.mark.slow
def test_a_training_that_fails_for_all_is_done_one_by_one(data, tmp_path, quiet, monkeypatch, caplog):
    def broken(*_: Any) -> None:
        raise MemoryError("planted")

    monkeypatch.setattr(pack, "train_together", broken)
    sweep_ = packed(data)
    job.run_job(tmp_path / "results", planned(sweep_, tmp_path / "results"))
    assert "4 runs cannot be trained together; each continues alone" in caplog.text
    same(done(sweep_, tmp_path / "results"), quiet)


@pytest.mark.slow
def test_all_runs_of_a_pack_stop_after_the_round_if_asked_to_leave_and_resume_later(data, tmp_path, quiet, monkeypatch):
    sweep_, before = packed(data), pack.train_together
    monkeypatch.setattr(stop_request, "received", False)
    rounds = []

    def signalled(*args: Any) -> Any:
        rounds.append(1)
        if len(rounds) == 2:
            stop_request.receive()
        return before(*args)

    monkeypatch.setattr(pack, "train_together", signalled)
    names = planned(sweep_, tmp_path / "results")
    with pytest.raises(job.Stopped):
        job.run_job(tmp_path / "results", names)
    assert {RunFolder(tmp_path / "results" / name).progress()["round"] for name in names} == {2}
    monkeypatch.setattr(stop_request, "received", False)
    job.run_job(tmp_path / "results", names)
    assert len(rounds) == 3
    same(done(sweep_, tmp_path / "results"), quiet)


def test_relatives_stand_side_by_side_in_a_plan(data, tmp_path):
    sweep_ = sweep(data, {}, {"method": ["fedvpt", "head_only"], "seed": [0, 1]})
    names = planned(sweep_, tmp_path / "results")
    like = [pack_key(RunFolder(tmp_path / "results" / name).config()["identity"]) for name in names]
    assert len(set(like)) == 2
    assert sum(a != b for a, b in pairwise(like)) == 1


RUN = {
    "method": {"name": "fedvpt", "prompt_length": 8, "finetune_epochs": 0, "logit_prior": None},
    "aggregation": {"name": "fedadam", "lr": 0.1},
    "local": {
        "lr": 0.1, "lr_decay": 1.0, "clip": None, "momentum": 0.9, "epochs": 1,
        "schedule": "exponential", "warmup_rounds": 5, "label_smoothing": 0.0,
    },
    **{"seed": 0, "seeds": {}, "partition": {"name": "iid"}, "clients": {"number": 5}, "rounds": 9},
    **{"evaluate_every": 1, "test_data": True, "metrics": [], "dataset": {"name": "glyphs"}, "precision": "float32"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("prior", "trained"), [("none", "none"), ("eval", "none"), ("train", "train"), ("both", "train")]
)
def test_training_sees_no_option_of_evaluation(prior, trained):
    method = plugins().make("method", {"name": "fedvpt", "logit_prior": prior, "finetune_epochs": 3})
    seen = method.in_training()
    assert (seen.logit_prior, seen.finetune_epochs) == (trained, 0)
    assert (method.logit_prior, method.finetune_epochs) == (prior, 3)


@pytest.mark.parametrize(
    ("block", "key", "value", "same_training", "same_pack"),
    [
        (None, "evaluate_every", 3, True, True), (None, "test_data", False, True, True), (None, "metrics", ["x"], True, True),
        ("method", "finetune_epochs", 2, True, True), ("method", "logit_prior", "eval", True, True),
        ("method", "logit_prior", "train", False, False), ("method", "logit_prior", "both", False, False),
        ("method", "prompt_length", 9, False, False), (None, "dataset", {"name": "digits"}, False, False),
        (None, "precision", "float64", False, False), ("local", "momentum", 0.5, False, False),
        ("local", "epochs", 2, False, False), ("local", "label_smoothing", 0.1, False, False),
        ("aggregation", "name", "fedavg", False, False),
        ("aggregation", "lr", 0.2, False, True), ("local", "lr", 0.2, False, True), ("local", "lr_decay", 0.9, False, True),
        ("local", "clip", 1.0, False, True), ("local", "schedule", "cosine", False, True),
        ("local", "warmup_rounds", 2, False, True), (None, "seed", 1, False, True), (None, "seeds", {"cohort": 1}, False, True),
        (None, "partition", {"name": "shards"}, False, True), (None, "clients", {"number": 6}, False, True),
        (None, "rounds", 8, False, True),
    ],
)  # fmt: skip
def test_runs_share_a_training_or_a_pack_by_what_differs(block, key, value, same_training, same_pack):
    other = {**RUN, key: value} if block is None else {**RUN, block: {**RUN[block], key: value}}
    assert (training_key(other) == training_key(RUN)) is same_training
    assert (pack_key(other) == pack_key(RUN)) is same_pack
