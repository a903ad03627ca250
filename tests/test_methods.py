"""The method contract over every plug-in in the folder and every choice of its fields; broken on purpose, it is seen."""

from __future__ import annotations

import pytest
import tiny
import torch

from fedbench import local as local_module
from fedbench.contract import Check, ContractError, form, isolation, rounds
from fedbench.contract.rounds import COHORT
from fedbench.contract.world import Case
from fedbench.method import Aggregation

CASES = {name: Case(method, Aggregation()) for name, method in tiny.METHODS.items()}
CASES |= {name: Case(*pair) for name, pair in tiny.PAIRS.items()}
CHECKS = [*rounds.CHECKS, *isolation.CHECKS]
TRAINED = [name for name, case in CASES.items() if case.trains]


def test_plug_ins_are_found():
    assert {"head_only", "fedvpt", "fedvpt_deep", "pep_fedpt", "fedncm"} <= tiny.METHODS.keys()
    assert {"fedavg", "fedprox"} <= tiny.AGGREGATIONS.keys()
    assert len(TRAINED) > 20
    assert len(CHECKS) >= 14


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, check, id=f"{name}-{check.name}")
        for name, case in CASES.items()
        for check in CHECKS
        if check.of == "run" or name in TRAINED
    ],
)
def test_contract(case: Case, check: Check):
    check.run(case)


@pytest.mark.parametrize("check", form.CHECKS, ids=lambda check: check.name)
def test_form(check: Check):
    for plugin in [*tiny.METHODS.values(), *tiny.AGGREGATIONS.values()]:
        check.run(plugin)


# -- the contract can fail: break the core on purpose and see each break caught --------------------------------------


def broken() -> Case:
    """FedVPT in a world that no other test has warmed up."""
    return Case(tiny.METHODS["fedvpt"], Aggregation())


def test_a_mean_over_clients_instead_of_a_sum_is_caught(monkeypatch):
    real = torch.autograd.grad

    def mean_over_clients(loss, leaves, **options):
        return [g / len(g) for g in real(loss, leaves, **options)]

    monkeypatch.setattr(torch.autograd, "grad", mean_over_clients)
    with pytest.raises(ContractError, match="same together with other clients as alone"):
        rounds.together_equals_alone.run(broken())


def test_moving_finished_clients_is_caught(monkeypatch):
    def moves_all(self, leaves, gradients, optimizer, *_):
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()

    monkeypatch.setattr(local_module.Trainer, "_step", moves_all)
    with pytest.raises(ContractError, match="same together with other clients as alone"):
        rounds.together_equals_alone.run(broken())


def test_counted_padding_is_caught(monkeypatch):
    monkeypatch.setattr(local_module, "masked_sum", lambda values, weight: values.sum(1))
    with pytest.raises(ContractError, match="no trace of padding"):
        rounds.padding_is_nothing.run(broken())


def test_the_breaks_are_what_is_caught():
    rounds.together_equals_alone.run(broken())
    rounds.padding_is_nothing.run(broken())
    assert COHORT == (4, 0, 5, 2)
