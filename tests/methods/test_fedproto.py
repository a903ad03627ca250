"""FedProto against a twin in plain PyTorch: the pull of each client's features, the prototypes, and the answers."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_personalised import COHORT, LR, MODEL, data, feature, of_client, one_step, same

PULL = 3.0


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_fedproto_pulls_features_to_the_prototypes_and_averages_those(weighting: str) -> None:
    """Two rounds of one step each: no prototypes in the first, and those of its clients' classes in the second."""
    small = one_step("fedproto", pull=PULL)
    small.server.aggregation = dataclasses.replace(small.server.aggregation, weighting=weighting)
    prototypes: dict[int, torch.Tensor] = {}
    for round_, cohort in ((1, (4, 0)), (2, COHORT)):
        report = small.round(cohort, round_=round_)
        means: dict[int, list[tuple[float, torch.Tensor]]] = {}
        for row, k in enumerate(report.clients.tolist()):
            sent, updated = of_client(report.received, row), of_client(report.updated, row)
            images, y = data(small, k)
            leaves = [sent[name].clone().requires_grad_() for name in MODEL]
            z = feature(small, images, leaves[0])
            apart = [(a - prototypes[c]).square().mean() for a, c in zip(z, y.tolist(), strict=True) if c in prototypes]
            loss = F.cross_entropy(z @ leaves[1].T + leaves[2], y) + PULL * sum(apart) / len(y)
            for name, leaf, g in zip(MODEL, leaves, torch.autograd.grad(loss, leaves), strict=True):
                assert same(updated[name], leaf - LR * g)
            for c in y.unique().tolist():
                n = float((y == c).sum()) if weighting == "samples" else 1.0
                means.setdefault(c, []).append((n, z[y == c].mean(0).detach()))
        small.server.merge(report)
        for c, parts in means.items():
            prototypes[c] = sum(n * mean for n, mean in parts) / sum(n for n, _ in parts)
        for c, mu in prototypes.items():
            assert same(small.server.values["prototype"][c], mu)
    assert any(len(parts) > 1 for parts in means.values())
    assert small.server.bytes_per_client() == (
        0,
        4 * 32 * tiny.CLASSES,
    )  # of the model nothing, of the server prototypes


def test_fedproto_answers_with_the_nearest_prototype_or_the_local_head() -> None:
    small = one_step("fedproto")
    small.server.merge(small.round((5,)))  # a client of one sample, so one class has a prototype
    index, values = torch.tensor([[40, 41]]), small.server.send(torch.tensor([5])) | small.server.read()
    z = feature(small, small.model.images.batch(index[0]), values["prompt"][0])
    (known,) = data(small, 5)[1].tolist()
    logits = small.model.forward(values, index, add_prior=False).logits[0]
    assert same(logits[:, known], -(z - small.server.values["prototype"][known]).square().mean(-1))
    assert (logits.argmax(-1) == known).all()
    head = dataclasses.replace(small.model, method=dataclasses.replace(small.model.method, predict="head"))
    expected = z @ values["head.weight"][0].T + values["head.bias"][0]
    assert same(head.forward(values, index, add_prior=False).logits[0], expected)
