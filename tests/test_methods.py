"""The method contract for every shipped plug-in and every choice of its fields; the checks fail when the core is broken."""

from __future__ import annotations

import pytest
import tiny
import torch

from fedbench.contract import Check, ContractError, form, isolation, rounds, violation
from fedbench.contract.rounds import COHORT
from fedbench.contract.world import Case
from fedbench.method import Aggregation, Method
from fedbench.run import local as local_module
from fedbench.run.server import bytes_of_sums, nbytes

CASES = {name: (method, Aggregation()) for name, method in tiny.METHODS.items()} | tiny.PAIRS
CHECKS = [*rounds.CHECKS, *isolation.CHECKS]
MERGED = [name for name, pair in CASES.items() if Case(*pair).trains]
# Clients train the same whatever the server does with their updates, so only aggregations with a loss term are tested here.
TRAINED = [name for name in MERGED if name not in tiny.PAIRS or tiny.PAIRS[name][1].extra_loss is not None]
NAMES = {"run": list(CASES), "merge": MERGED, "round": TRAINED}


def test_plug_ins_are_found():
    assert {"head_only", "fedvpt", "fedvpt_deep", "pep_fedpt", "fedncm"} <= tiny.METHODS.keys()
    assert {"fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi"} <= tiny.AGGREGATIONS.keys()
    assert len(TRAINED) > 20
    assert len(CHECKS) >= 15


LONG = ("full_finetune", "sgpt", "pfpt", "apfl", "fedpgp", "ditto", "fedperfix")  # each of more than two seconds
QUICK_WITH_TEXT = ("promptfl", "promptfolio", "clip_zero_shot")  # shared, local and no contexts


def is_quick(name: str) -> bool:
    """Whether a case is a method with its defaults, or FedVPT with an aggregation of another structure."""
    if name not in tiny.PAIRS:
        return "-" not in name and name not in LONG and (not tiny.METHODS[name].reads_text or name in QUICK_WITH_TEXT)
    method, _, aggregation = name.partition("+")
    return method == "fedvpt" and not aggregation.startswith(tiny.ALIKE)


@pytest.mark.parametrize(
    "name", [name if is_quick(name) else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_contract(name: str):
    """All checks on one case, whose runs are warmed up once."""
    case = Case(*CASES[name])
    checks = [check for check in CHECKS if name in NAMES[check.subject_kind]]
    violations = {check.name: text for check in checks if (text := violation(check, case))}
    assert not violations


@pytest.mark.parametrize("name", [name for name in TRAINED if name in tiny.METHODS])
def test_every_hook_of_a_method_that_sees_samples_is_probed(name, monkeypatch):
    method, depth = tiny.METHODS[name], form.DEPTH
    probed = set()
    perturbed, each = isolation.PerturbingModel._perturbed, isolation.PerturbingModel.each

    def record(self, args, positions):
        probed.add(self.current)
        return perturbed(self, args, positions)

    def named(self, hook, args, dims, call=None):
        object.__setattr__(self, "current", hook.__name__)
        return each(self, hook, args, dims, call)

    monkeypatch.setattr(isolation.PerturbingModel, "_perturbed", record)
    monkeypatch.setattr(isolation.PerturbingModel, "each", named)
    isolation.samples_do_not_see_each_other.run(Case(method, Aggregation()))
    forms = [method.at(phase, view) for phase in range(len(method.phases or (0,))) for view in (None, *method.views)]
    expected = {
        hook
        for hook in ("pixels", "extra_loss", "observe", "batch_values")
        if any(getattr(form_, hook) for form_ in forms)
    }
    expected |= {"logits"} | {"prompts" for form_ in forms if form_.layers(depth)}
    expected |= {"prefixes" for form_ in forms if form_.prefixes}
    assert probed == expected


def test_hooks_that_see_samples_are_those_that_are_probed():
    """A new hook with samples among its arguments must be added to the isolation checks."""
    samples = {"cls", "query", "images", "out", "taps", "y", "tokens"}
    hooks = {name for name, arguments in form.HOOKS[Method].items() if samples & set(arguments)}
    assert hooks - {"statistics"} == {*isolation.SAMPLE_ARGUMENTS, *isolation.BATCH_ARGUMENTS}


@pytest.mark.parametrize("check", form.CHECKS, ids=lambda check: check.name)
def test_form(check: Check):
    for plugin in [*tiny.METHODS.values(), *tiny.AGGREGATIONS.values()]:
        check.run(plugin)


def test_statistics_are_sent_for_classes_that_a_client_has():
    small = tiny.mini_run(tiny.METHODS["fedncm"], dtype=torch.float32)
    each = small.statistics(range(tiny.CLIENTS))
    counted = sum(bytes_of_sums(torch.stack([stats[name] for stats in each])) for name in each[0])
    # for each (client, class) pair: float32 [32] sums, a count, and the class's number with each
    pairs = [len(set(small.labels[part])) for part in small.train]
    assert counted == sum(4 * min(33 * n, 32 * 5) + 4 * min(2 * n, 5) for n in pairs)
    assert min(pairs) == 1


# -- the checks can fail: each test breaks the core and expects a violation --------------------------------------


def broken() -> Case:
    """FedVPT in a run that no other test has warmed up."""
    return Case(tiny.METHODS["fedvpt"], Aggregation())


def test_a_mean_over_clients_instead_of_a_sum_is_caught(monkeypatch):
    real = torch.autograd.grad

    def mean_over_clients(loss, leaves, **options):
        return [g / len(g) for g in real(loss, leaves, **options)]

    monkeypatch.setattr(torch.autograd, "grad", mean_over_clients)
    with pytest.raises(ContractError, match="same result with other clients as alone"):
        rounds.together_equals_alone.run(broken())


def test_moving_finished_clients_is_caught(monkeypatch):
    def moves_all(self, gradients, active, steer=None):
        for leaf, gradient in zip(self.leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        self.optimizer.step()

    monkeypatch.setattr(local_module.ClientOptimizer, "step", moves_all)
    with pytest.raises(ContractError, match="same result with other clients as alone"):
        rounds.together_equals_alone.run(broken())


def test_counted_padding_is_caught(monkeypatch):
    monkeypatch.setattr(local_module, "masked_sum", lambda values, weight: values.sum(1))
    with pytest.raises(ContractError, match="no effect of padding"):
        rounds.padding_has_no_effect.run(broken())


def test_the_unbroken_core_passes():
    rounds.together_equals_alone.run(broken())
    rounds.padding_has_no_effect.run(broken())
    assert COHORT == (4, 0, 5, 2)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 4), (torch.float32, 4), (torch.bfloat16, 2), (torch.int64, 8), (torch.int8, 1), (torch.bool, 1)],
)
def test_a_number_on_the_wire_has_at_most_single_precision(dtype: torch.dtype, size: int) -> None:
    assert nbytes(torch.zeros(2, 3, dtype=dtype)) == 6 * size


def test_clients_leave_out_rows_of_zeros_if_that_saves_bytes() -> None:
    """Rows of four numbers take 16 bytes, and 4 more for their number; all three rows take 48 bytes without numbers."""
    sums = torch.zeros(4, 3, 2, 2)
    sums[0, 1, 0, 1] = -1.0  # one row
    sums[1, :2] = 1.0  # two rows
    sums[2] = 1.0  # all rows
    assert bytes_of_sums(sums) == 20 + 40 + 48 + 0
    assert bytes_of_sums(torch.zeros(5)) == 20  # one number for each client
    assert bytes_of_sums(torch.zeros(5, 0, 2)) == 0
    assert bytes_of_sums(torch.eye(3).long()) == 3 * (8 + 4)


@pytest.mark.parametrize("change", [{}, {"choice": "sample"}, {"bernoulli": "likelihood"}, {"prompt_lr_scale": 2.0}])
def test_pfpt_says_in_its_label_that_it_is_not_the_official_form(change):
    official = {"name": "pfpt", "choice": "batch", "bernoulli": "code", "prompt_lr_scale": 1.0}
    note = tiny.plugins().make("method", official | change).label_note
    assert note == ("not the official form" if change else "")
