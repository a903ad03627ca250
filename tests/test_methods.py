"""The method contract over every plug-in in the folder and every choice of its fields; broken on purpose, it is seen."""

from __future__ import annotations

import pytest
import tiny
import torch

from fedbench.contract import Check, ContractError, form, isolation, rounds, verdict
from fedbench.contract.rounds import COHORT
from fedbench.contract.world import Case
from fedbench.method import Aggregation
from fedbench.run import local as local_module
from fedbench.run.server import bytes_of_sums

CASES = {name: (method, Aggregation()) for name, method in tiny.METHODS.items()} | tiny.PAIRS
CHECKS = [*rounds.CHECKS, *isolation.CHECKS]
MERGED = [name for name, pair in CASES.items() if Case(*pair).trains]
# What the server does with what came back is no matter of the clients: here every aggregation that has a part in their loss.
TRAINED = [name for name in MERGED if name not in tiny.PAIRS or tiny.PAIRS[name][1].extra_loss is not None]
CONCERNS = {"run": list(CASES), "merge": MERGED, "round": TRAINED}


def test_plug_ins_are_found():
    assert {"head_only", "fedvpt", "fedvpt_deep", "pep_fedpt", "fedncm"} <= tiny.METHODS.keys()
    assert {"fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi"} <= tiny.AGGREGATIONS.keys()
    assert len(TRAINED) > 20
    assert len(CHECKS) >= 15


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str):
    """All checks on one case, which warms its worlds up once."""
    case = Case(*CASES[name])
    broken = {check.name: says for check in CHECKS if name in CONCERNS[check.of] and (says := verdict(check, case))}
    assert not broken


@pytest.mark.parametrize("check", form.CHECKS, ids=lambda check: check.name)
def test_form(check: Check):
    for plugin in [*tiny.METHODS.values(), *tiny.AGGREGATIONS.values()]:
        check.run(plugin)


def test_statistics_are_sent_for_classes_that_a_client_has():
    small = tiny.tiny(tiny.METHODS["fedncm"], dtype=torch.float32)
    each = small.statistics(range(tiny.CLIENTS))
    counted = sum(bytes_of_sums(torch.stack([stats[name] for stats in each])) for name in each[0])
    # float32 [32] sums, counts and the class's number with each, of every (client, class) pair
    pairs = [len(set(small.labels[part])) for part in small.train]
    assert counted == sum(4 * min(33 * n, 32 * 5) + 4 * min(2 * n, 5) for n in pairs)
    assert min(pairs) == 1


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
    def moves_all(self, gradients, active, steer=None):
        for leaf, gradient in zip(self.leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        self.optimizer.step()

    monkeypatch.setattr(local_module.ClientOptimizer, "step", moves_all)
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
