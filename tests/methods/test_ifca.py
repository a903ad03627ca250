"""IFCA against a twin in plain PyTorch: what each client takes, trains and sends, and what the server makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny
import torch
from test_personalised import COHORT, HEAD, LR, MODEL, feature, gradient, loss, of_client, one_step, same

from fedbench.method import HookError
from fedbench.run.choice import chosen

SETS = 3


def least(small: tiny.MiniRun, k: int) -> int:
    """The set of least loss on the training data of client k."""
    sets, head = small.server.values["sets"], [small.server.values[name] for name in HEAD]
    losses = [loss(small, k, prompt, *head).item() for prompt in sets]
    return losses.index(min(losses))


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_ifca_clients_train_the_set_of_least_loss_and_each_set_is_the_mean_of_its_clients(weighting: str) -> None:
    small = one_step("ifca", models=SETS)
    small.server.aggregation = dataclasses.replace(small.server.aggregation, weighting=weighting)
    takers: set[int] = set()
    for round_ in (1, 2, 3):
        before = {name: small.server.values[name].clone() for name in ("sets", *HEAD)}
        report = small.round(COHORT, round_=round_)
        ends: dict[int, list[tuple[float, torch.Tensor]]] = {}
        for row, k in enumerate(report.clients.tolist()):
            best = least(small, k)
            assert report.sums["taken"][row] == best
            start = [before["sets"][best], *(before[name] for name in HEAD)]
            end = {n: v - LR * g for n, v, g in zip(MODEL, start, gradient(small, k, *start), strict=True)}
            updated = of_client(report.updated, row)
            assert all(same(updated[name], end[name]) for name in MODEL)
            ends.setdefault(best, []).append((tiny.SIZES[k] if weighting == "samples" else 1.0, end["prompt"]))
        small.server.merge(report)
        for m in range(SETS):
            parts = ends.get(m)
            mean = sum(n * end for n, end in parts) / sum(n for n, _ in parts) if parts else before["sets"][m]
            assert same(small.server.values["sets"][m], mean)
        takers |= ends.keys()
    assert len(takers) > 1  # clients have parted


def test_ifca_sends_all_sets_down_and_one_up_with_its_number() -> None:
    small = one_step("ifca", models=SETS, prompt_length=3)
    head, prompt = 4 * 33 * tiny.CLASSES, 4 * 3 * 32
    assert small.server.bytes_per_client() == (head + prompt, head + SETS * prompt)
    assert list(small.round(COHORT).sums) == ["taken"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda sets: {"prompt": sets[0, :2]}, r"'prompt' of shape \[2, 32\], expected \[3, 32\]"),
        (lambda sets: {"sets": sets[:1]}, r"'sets' of shape \[1, 3, 32\], expected no value of a client"),
    ],
)
def test_a_choice_must_be_a_value_of_the_client_in_its_shape(made: Any, message: str) -> None:
    small = one_step("ifca", models=SETS, prompt_length=3)

    class Wrong(type(small.model.method)):  # type: ignore[misc]
        def choose_by_loss(self, p: Any, losses: Any) -> Any:
            return made(p["sets"])

    wrong = Wrong(**dataclasses.asdict(small.model.method))
    trainer = dataclasses.replace(small.trainer, model=dataclasses.replace(small.model, method=wrong))
    with pytest.raises(HookError, match=message):
        chosen(trainer, small.server.send(torch.arange(2)), small.server.read(), small.train[:2])


def test_ifca_clients_choose_by_their_training_data_before_an_evaluation() -> None:
    """New clients too; cut into chunks of clients and pieces of samples, the choice is the same."""
    small = one_step("ifca", models=SETS)
    small.server.merge(small.round(COHORT))
    everyone, server = torch.arange(tiny.CLIENTS), small.server
    for change in ({}, {"chunk": 2, "piece": 3}):
        trainer = dataclasses.replace(small.trainer, **change)
        values, reported = chosen(trainer, server.send(everyone), server.read(), small.train)
        assert reported["taken"].tolist() == [least(small, k) for k in everyone.tolist()]
        assert torch.equal(values["prompt"], server.values["sets"][reported["taken"]])
    index = torch.tensor([[40, 41]])
    row = {name: value[:1] for name, value in values.items()} | server.read()
    z = feature(small, small.model.images.batch(index[0]), values["prompt"][0])
    logits = small.model.forward(row, index, add_prior=False).logits[0]
    assert same(logits, z @ values["head.weight"][0].T + values["head.bias"][0])
    assert server.unseen_client() is None


def test_a_client_chooses_by_the_mean_cross_entropy_of_its_training_samples() -> None:
    small = one_step("ifca", models=SETS)

    class Reporting(type(small.model.method)):  # type: ignore[misc]
        def choose_by_loss(self, p: Any, losses: Any) -> Any:
            return {**super().choose_by_loss(p, losses), "losses": torch.stack(list(losses.values()))}

    reporting = Reporting(**dataclasses.asdict(small.model.method))
    trainer = dataclasses.replace(small.trainer, piece=3, model=dataclasses.replace(small.model, method=reporting))
    _, reported = chosen(trainer, small.server.send(torch.arange(tiny.CLIENTS)), small.server.read(), small.train)
    head = [small.server.values[name] for name in HEAD]
    for k in range(tiny.CLIENTS):
        losses = torch.stack([loss(small, k, prompt, *head) for prompt in small.server.values["sets"]])
        assert same(reported["losses"][k], losses)
