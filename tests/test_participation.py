"""Who takes part: dropouts, stragglers, availability by a file, and cohorts drawn by loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_schedule import sweep

from fedbench.base.records import RunFolder
from fedbench.data import DataError
from fedbench.plan.config import ConfigError, RunConfig
from fedbench.run import simulation
from fedbench.run.participation import Participation, participation
from fedbench.run.simulation import RunState, begin, one_round, receive, send

PLUGINS = {"dataset": {"name": "glyphs"}, "partition": {"name": "iid"}, "method": {"name": "head_only"}}


def state_of(folder: Path, clients: dict[str, Any] | None = None, name: str = "results", **run: Any) -> RunState:
    """A run on 28 training images of noise, split unevenly over six clients, in float64."""
    common = {
        "clients": {"number": 6, "per_round": 3, "validation": 0, **(clients or {})},
        "partition": {"name": "quantity", "sigma": 0.7},
        "method": "head_only",
        "local": {"epochs": 1, "batch_size": 2, "lr": 0.05},
        "precision": "float64",
        "rounds": 12,
    }
    sweep_ = sweep(folder, **(common | run))
    (planned,) = sweep_.runs
    made = RunFolder(folder / name / planned.name)
    if not made.files():
        made.plan(sweep_.on_disk(planned))
    return begin(planned, sweep_.machine, sweep_.plugins, made)


def test_a_client_that_drops_out_receives_values_and_leaves_no_trace(tmp_path):
    plain, lossy = state_of(tmp_path), state_of(tmp_path, {"dropout": 0.5})
    up, down = plain.experiment.server.bytes_per_client()
    taken, missing = set(), 0
    for round_ in range(1, 9):
        drawn = plain.experiment.cohort_of(round_).tolist()
        sent = send(lossy.experiment, round_)
        stayed = sent.cohort.tolist()
        assert set(stayed) <= set(drawn)
        assert len(stayed) >= 1
        costs = receive(lossy.experiment, round_, sent, sent.training.train()).costs
        assert (costs.bytes_up, costs.bytes_down) == (up * len(stayed), down * len(drawn))
        taken |= set(stayed)
        missing += len(drawn) - len(stayed)
        assert np.flatnonzero(lossy.experiment.server.has_taken_part.numpy()).tolist() == sorted(taken)
    assert missing > 0


def test_clients_drop_out_at_the_rate_that_the_file_names(tmp_path):
    rules = state_of(tmp_path, {"dropout": 0.3, "per_round": 6}).experiment.participation
    everyone = np.arange(6)
    stays = [len(rules.remaining(round_, everyone)) for round_ in range(1, 2001)]
    assert np.mean(stays) / 6 == pytest.approx(0.7, abs=0.02)
    assert min(stays) >= 1


def test_a_straggler_does_what_a_client_with_fewer_epochs_does(tmp_path):
    recipe = {"epochs": 3, "batch_size": 2, "lr": 0.05}
    prompts = {"name": "fedvpt", "prompt_length": 2}
    experiment = state_of(tmp_path, {"stragglers": 0.6, "per_round": 6}, local=recipe, method=prompts).experiment
    sent = send(experiment, 1)
    updates = sent.training.train()
    epochs = dict(zip(sent.cohort.tolist(), experiment.participation.epochs(1, sent.cohort).tolist(), strict=True))
    assert len(set(epochs.values())) > 1
    assert max(epochs.values()) == 3
    sizes = experiment.split.train.sizes
    for e in set(epochs.values()):
        other = state_of(tmp_path, {"per_round": 6}, local=recipe | {"epochs": e}, method=prompts)
        alike = send(other.experiment, 1).training.train()
        for row, k in enumerate(updates.clients.tolist()):
            if epochs[k] == e:
                there = alike.clients.tolist().index(k)
                for name, value in updates.updated.items():
                    assert (value[row] - alike.updated[name][there]).abs().max() < 1e-9, name
                assert updates.steps[row].item() == e * -(-sizes[k] // 2)
    n = updates.num_samples.tolist()
    assert n == pytest.approx([sizes[k] for k in updates.clients.tolist()])  # a straggler has as many samples
    costs = receive(experiment, 1, sent, updates).costs
    assert costs.multiply_adds == experiment.image_cost.training * sum(sizes[k] * e for k, e in epochs.items())


def test_if_all_would_drop_out_the_first_client_stays():
    rules = rules_of([1] * 10, dropout=1 - 1e-12)
    assert [rules.remaining(round_, np.array([4, 2, 7])).tolist() for round_ in (1, 2)] == [[4], [4]]


def rules_of(sizes: list[int], epochs: int = 3, **clients: Any) -> Participation:
    """The rules of clients of these sizes, of which the last one is held out."""
    planned = SimpleNamespace(
        clients=SimpleNamespace(**({"number": len(sizes), "draw": "uniform", "candidates": None} | clients)),
        local=SimpleNamespace(epochs=epochs),
        stream=lambda name: 7,
    )
    return Participation(planned, np.arange(len(sizes) - 1), np.array(sizes))


def test_stragglers_are_drawn_at_their_rate_with_each_smaller_number_of_epochs_alike():
    rules = rules_of([1] * 10, epochs=4, stragglers=0.3)
    epochs = np.concatenate([rules.epochs(round_, np.array([0, 4, 9])) for round_ in range(1, 2001)])
    shares = np.bincount(epochs, minlength=6) / len(epochs)
    assert shares == pytest.approx([0, 0.1, 0.1, 0.1, 0.7, 0], abs=0.02)


def test_candidates_are_drawn_in_proportion_to_their_training_samples():
    """One of four clients with 1 to 4 samples: client k is drawn with probability (k + 1) / 10; the held-out one never."""
    rules = rules_of([1, 2, 3, 4, 90], draw="loss", per_round=1, candidates=1)
    drawn = np.concatenate([rules.candidates(round_) for round_ in range(1, 2001)])
    assert np.bincount(drawn, minlength=5) / len(drawn) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0], abs=0.03)


@pytest.mark.parametrize(("candidates", "count"), [(None, 4), (3, 3), (40, 7)])
def test_without_a_number_twice_the_cohort_are_candidates(candidates, count):
    rules = rules_of([5] * 8, draw="loss", per_round=2, candidates=candidates)
    drawn = rules.candidates(3).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count


def test_a_uniform_cohort_takes_each_client_equally_often():
    rules = rules_of([1, 100, 1, 1, 1], per_round=2)
    drawn = np.concatenate([rules.cohort(round_) for round_ in range(1, 2001)])
    assert len(drawn) == 4000
    assert np.bincount(drawn, minlength=5) / 2000 == pytest.approx([0.5, 0.5, 0.5, 0.5, 0], abs=0.05)


def test_cohorts_come_from_the_clients_that_the_file_names_and_its_rounds_repeat(tmp_path):
    file = tmp_path / "who.csv"
    file.write_text("round,client\n1,0\n1,1\n1,2\n1,5\n2,3\n")
    state = state_of(tmp_path, {"available": str(file)})
    cohorts = [state.experiment.cohort_of(round_).tolist() for round_ in range(1, 13)]
    assert all(len(cohort) == 3 and set(cohort) <= {0, 1, 2, 5} for cohort in cohorts[::2])
    assert cohorts[1::2] == [[3]] * 6
    assert one_round(state.experiment, 2).costs.bytes_down == state.experiment.server.bytes_per_client()[1]
    other = tmp_path / "other.csv"
    other.write_text(file.read_text() + "2,4\n")
    names = {state_of(tmp_path, {"available": str(path)}).folder.path.name for path in (file, other)}
    assert len(names) == 2  # the content is part of a run's identity


def test_a_round_needs_an_available_client_that_trains(tmp_path):
    file = tmp_path / "who.csv"
    run = RunConfig.model_validate({"clients": {"number": 4, "per_round": 2, "available": str(file)}} | PLUGINS)
    held_out = np.array([True, True, False, False])
    file.write_text("round,client\n1,0\n1,2\n2,3\n")
    rules = participation(run, held_out, np.ones(4, dtype=int))
    assert [rules.cohort(round_).tolist() for round_ in (1, 2, 3)] == [[2], [3], [2]]
    file.write_text("round,client\n1,2\n2,0\n2,1\n")
    with pytest.raises(DataError, match=r"only held-out clients are available in round 2 of .*who\.csv"):
        participation(run, held_out, np.ones(4, dtype=int))


def test_cohorts_drawn_by_loss_take_newcomers_and_then_the_largest_last_losses(tmp_path):
    state = state_of(tmp_path, {"draw": "loss", "candidates": 5})
    last: dict[int, float] = {}
    for round_ in range(1, 7):
        candidates = state.experiment.participation.candidates(round_).tolist()
        assert len(set(candidates)) == 5
        ranked = sorted(candidates, key=lambda k: -last.get(k, float("inf")))
        sent = send(state.experiment, round_)
        assert sent.cohort.tolist() == sorted(ranked[:3])
        updates = sent.training.train()
        receive(state.experiment, round_, sent, updates)
        last |= zip(updates.clients.tolist(), updates.loss.tolist(), strict=True)


def test_a_run_whose_cohorts_are_drawn_by_loss_resumes_with_the_same_numbers(tmp_path, monkeypatch):
    change = {"clients": {"draw": "loss"}, "rounds": 4, "evaluate_every": 4}
    whole = state_of(tmp_path, name="whole", **change)
    parts = state_of(tmp_path, name="parts", **change)
    for state, stops in ((whole, False), (parts, True)):
        while not state.over:
            leaves = stops and state.rounds_done == 1
            try:
                state.close(one_round(state.experiment, state.rounds_done + 1), lambda leaves=leaves: leaves)
            except simulation.Stopped:
                parts = state = state_of(tmp_path, name="parts", **change)
                assert state.rounds_done == 2
                while not state.over:
                    state.close(one_round(state.experiment, state.rounds_done + 1), lambda: False)
    first, second = whole.experiment.server.state(), parts.experiment.server.state()
    assert torch.isfinite(first["last_loss"]).sum() >= 3
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("clients", "text", "message"),
    [
        ({"candidates": 4}, "", "clients.candidates: 4 has no effect with `draw: uniform`"),
        ({"draw": "loss", "candidates": 2}, "", r"clients.candidates: expected at least per_round \(3\), found 2"),
        ({"dropout": 1.0}, "", "clients.dropout"),
        ({"available": "who.csv"}, "round;client\n", "expected the columns round, client, found round;client"),
        ({"available": "who.csv"}, "round,client\n1,x\n", "line 2: expected a round and a client, found '1,x'"),
        ({"available": "who.csv"}, "round,client\n1,6\n", "line 2: expected a round from 1 on and a client of 0..5"),
        ({"available": "who.csv"}, "round,client\n1,0\n\n1,-1\n", "line 4: expected a round from 1 on and a client"),
        ({"available": "who.csv"}, "round,client\n0,0\n", "line 2: expected a round .* found 0 and 0"),
        ({"available": "who.csv"}, "round,client\n1,1\n3,1\n", "no client is available in round 2"),
        ({"available": "who.csv"}, "round,client\n2,1\n", "no client is available in round 1"),
        ({"available": "who.csv"}, "round,client\n", "no round has an available client"),
    ],
)
def test_a_mistake_in_the_participation_gets_one_message(tmp_path, clients, text, message):
    if "available" in clients:
        (tmp_path / "who.csv").write_text(text)
        clients = {"available": str(tmp_path / "who.csv")}
    with pytest.raises(ConfigError, match=message) as raised:
        state_of(tmp_path, clients)
    assert "1 mistake" in str(raised.value)


def test_stragglers_need_epochs_to_leave_out(tmp_path):
    with pytest.raises(ConfigError, match=r"clients.stragglers: needs local.epochs of at least 2"):
        state_of(tmp_path, {"stragglers": 0.5}, local={"epochs": 1})


def test_a_run_without_these_keys_has_the_name_that_it_had_before_them(tmp_path):
    named = {"dropout": 0.0, "stragglers": 0.0, "available": None, "draw": "uniform", "candidates": None}
    assert state_of(tmp_path, named).folder.path.name == state_of(tmp_path).folder.path.name
