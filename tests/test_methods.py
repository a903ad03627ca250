"""The method contract over every plug-in in the folder and every choice of its fields: clients are independent rows."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save

from fedbench import local as local_module
from fedbench.method import Aggregation
from fedbench.server import bytes_of_sums

CASES = {name: (method, Aggregation()) for name, method in tiny.METHODS.items()} | tiny.PAIRS
COHORT = (4, 0, 5, 2)  # of 9, 7, 1 and 12 samples: 6, 4, 2 and 6 batches of 4 in 2 epochs
TOLERANCE = 1e-10  # float64, a few dozen steps


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max([0.0, *((a[k] - b[k]).abs().max().item() for k in a if a[k].is_floating_point())])


def trains(case: str) -> bool:
    method, _ = CASES[case]
    return any(param.trains for param in tiny.tiny(method).server.spec.values())


MERGED = [case for case in CASES if trains(case)]
# What the server does with what came back is no matter of the clients: here every aggregation that has a part in their loss.
TRAINED = [case for case in MERGED if case not in tiny.PAIRS or tiny.PAIRS[case][1].extra_loss is not None]


def warmed(case: str, **options: object) -> tiny.Tiny:
    """A server after one merged round, so that no value is still at zero."""
    method, aggregation = CASES[case]
    small = tiny.tiny(method, aggregation, **options)  # type: ignore[arg-type]
    small.introduce(range(tiny.CLIENTS))
    if small.trainer.phases:
        small.server.merge(small.round((1, 2, 3), round_=0))
    return small


def test_plug_ins_are_found():
    assert {"head_only", "fedvpt", "fedvpt_deep", "pep_fedpt", "fedncm"} <= tiny.METHODS.keys()
    assert {"fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi"} <= tiny.AGGREGATIONS.keys()
    assert len(TRAINED) > 20


@pytest.mark.parametrize("case", TRAINED)
def test_loop_equals_stacked(case):
    small = warmed(case)
    stacked = small.round(COHORT)
    loop = small.round(COHORT, cohort=dataclasses.replace(small.cohort, clients="loop"))
    assert furthest(stacked.got, loop.got) < TOLERANCE
    assert furthest(stacked.seen, loop.seen) < TOLERANCE


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("recipe", [{}, {"optimizer": "adam", "clip": None}], ids=["sgd", "adam"])
def test_together_equals_alone(case, recipe):
    """Each client ends where it would have ended by itself: uneven data, momentum, weight decay, clipping."""
    small = warmed(case, **recipe)
    together = small.round(COHORT)
    for row, k in enumerate(together.clients.tolist()):
        alone = small.round([k])
        assert furthest({n: v[row : row + 1] for n, v in together.got.items()}, alone.got) < TOLERANCE
        assert furthest({n: v[row : row + 1] for n, v in together.seen.items()}, alone.seen) < TOLERANCE
        assert together.weight[row] == alone.weight[0] == tiny.SIZES[k]
        assert together.steps[row] == alone.steps[0]
        assert abs(together.loss[row] - alone.loss[0]) < TOLERANCE


@pytest.mark.parametrize("case", TRAINED)
def test_chunks_change_nothing(case):
    small = warmed(case)
    whole, chunked = small.round(COHORT), small.round(COHORT, chunk=3)
    assert furthest(whole.got, chunked.got) < TOLERANCE
    assert furthest(whole.seen, chunked.seen) < TOLERANCE
    assert whole.clients.tolist() == chunked.clients.tolist()
    pieces = small.round(COHORT, piece=3)
    assert furthest(whole.got, pieces.got) < TOLERANCE
    assert furthest(whole.seen, pieces.seen) < TOLERANCE
    assert (whole.loss - pieces.loss).abs().max() < TOLERANCE


@pytest.mark.parametrize("case", TRAINED)
def test_garbage_in_the_padding_changes_nothing(case):
    small = warmed(case)
    clean = small.batches(COHORT)
    stranger = len(small.labels) - 1  # an image that is nobody's
    dirty = [dataclasses.replace(b, index=np.where(b.weight > 0, b.index, stranger)) for b in clean]
    assert any((b.weight == 0).any() for b in clean)
    a, b = small.round(COHORT, batches=clean), small.round(COHORT, batches=dirty)
    assert furthest(a.got, b.got) < TOLERANCE
    assert furthest(a.seen, b.seen) < TOLERANCE


@pytest.mark.parametrize("case", TRAINED)
def test_every_trained_value_moves_and_others_stay(case):
    small = warmed(case, weight_decay=0.0)
    report = small.round(COHORT)
    for name, value in report.got.items():
        moved = bool((value != report.sent[name]).any())
        assert moved == small.server.spec[name].trains, name


@pytest.mark.parametrize("case", MERGED)
def test_absent_clients_are_untouched(case):
    small = warmed(case)
    everyone = torch.arange(tiny.CLIENTS)
    before = small.server.memory.read(everyone)
    small.server.merge(small.round(COHORT))
    absent = [k for k in range(tiny.CLIENTS) if k not in COHORT]
    after = small.server.memory.read(everyone)
    for name, value in after.items():
        assert torch.equal(before[name][absent], value[absent]), name
    for value in [*small.server.values.values(), *after.values()]:
        assert value.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_what_is_serialised(case):
    """One client's round, written as safetensors: the bytes behind the header are the bytes that are counted."""
    small = warmed(case, dtype=torch.float32)
    server = small.server
    up, down = server.bytes_per_client()
    sent = server.send(torch.tensor([2]))
    shared = {name: sent[name] for name, param in server.spec.items() if param.home == "shared"}
    shared |= small.server._made(torch.tensor([2]))
    assert payload(shared | server.read()) == down
    if not small.trainer.phases:
        assert up == 0
        return
    report = small.round([2])
    back = {name: report.got[name] for name in shared if server.spec[name].trains}
    assert payload(back | {f"gradient.{name}": value for name, value in report.gradient.items()}) == up
    assert cheapest(report.seen) == sum(bytes_of_sums(value) for value in report.seen.values())


@pytest.mark.parametrize("name", ["fedncm", "fed3r", "fedcof", "pep_fedpt"])
def test_statistics_are_sent_for_classes_that_a_client_has(name):
    small = tiny.tiny(tiny.METHODS[name], dtype=torch.float32)
    hook, cohort = small.cohort.method.statistics, small.cohort
    stats = [hook(small.server.read(), cohort.features[part], cohort.labels[part]) for part in small.train]
    counted = sum(bytes_of_sums(torch.stack([s[key] for s in stats])) for key in stats[0])
    assert counted == sum(cheapest({key: value[None]}) for s in stats for key, value in s.items())
    if name == "fedncm":  # float32 [32] sums, counts and the class's number with each, of every (client, class) pair
        pairs = [len(set(small.labels[part])) for part in small.train]
        assert counted == sum(4 * min(33 * n, 32 * 5) + 4 * min(2 * n, 5) for n in pairs)
        assert min(pairs) == 1


def cheapest(sums: dict[str, torch.Tensor]) -> int:
    """Each client's tensors as safetensors: whole, or the rows that are not zero with their numbers, whichever is less."""
    total = 0
    for stacked in sums.values():
        for value in stacked:
            rows = [i for i, row in enumerate(value) if row.count_nonzero()]
            sparse = {"rows": value[rows], "at": torch.tensor(rows, dtype=torch.int32)}
            total += min(payload({"all": value}), payload(sparse))
    return total


def payload(tensors: dict[str, torch.Tensor]) -> int:
    if not tensors:
        return 0
    blob = save({name: value.contiguous().clone() for name, value in tensors.items()})
    header = struct.unpack("<Q", blob[:8])[0]
    json.loads(blob[8 : 8 + header])
    return len(blob) - 8 - header


@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_loop_over_samples(case):
    from fedbench.evaluation import accuracies

    small = warmed(case)
    parts = [
        np.arange(42, 50),
        np.arange(0),
        np.arange(37, 42),
        np.arange(50, 57),
        np.arange(38, 39),
        np.arange(40, 46),
    ]
    values = small.server.send(torch.arange(tiny.CLIENTS))
    found = accuracies(small.cohort, values, small.server.read(), parts, chunk=10)
    prior = small.cohort.method.logit_prior in ("eval", "both")
    for k, part in enumerate(parts):
        mine = {name: value[k : k + 1] for name, value in values.items()} | small.server.read()
        right = 0
        for i in part:
            logits = small.cohort.forward(mine, torch.tensor([[i]]), prior).logits
            right += int(logits[0, 0].argmax() == small.cohort.labels[i])
        assert (found.right[k], found.count[k]) == (right, len(part))


# -- the contract can fail: break the core on purpose and see each break caught --------------------------------------


def test_a_mean_over_clients_instead_of_a_sum_is_caught(monkeypatch):
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, leaves, **o: [g / 4 for g in real(loss, leaves, **o)])
    small = warmed("fedvpt", clip=None)
    together = small.round(COHORT)
    monkeypatch.setattr(torch.autograd, "grad", real)
    alone = small.round([int(together.clients[0])])
    assert furthest({n: v[:1] for n, v in together.got.items()}, alone.got) > 1e-3


def test_moving_finished_clients_is_caught(monkeypatch):
    def moves_all(self, leaves, gradients, optimizer, *_):
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()

    monkeypatch.setattr(local_module.Trainer, "_step", moves_all)
    small = warmed("fedvpt", clip=None)
    together = small.round(COHORT)
    row = together.clients.tolist().index(5)  # one sample: it finishes first
    alone = small.round([5])
    assert furthest({n: v[row : row + 1] for n, v in together.got.items()}, alone.got) > 1e-3


def test_counted_padding_is_caught(monkeypatch):
    monkeypatch.setattr(local_module, "masked_sum", lambda values, weight: values.sum(1))
    with pytest.raises(AssertionError):
        test_garbage_in_the_padding_changes_nothing("fedvpt")
