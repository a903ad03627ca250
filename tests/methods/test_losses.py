"""Label smoothing and supervised contrast against twins in plain PyTorch, and the contract of losses that read a batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_personalised import COHORT, LR, MODEL, data, feature, of_client, one_step, same
from torch import Tensor

from fedbench.contract import isolation, violation
from fedbench.contract.world import Case
from fedbench.run.choice import chosen

SUPCON = tiny.METHODS["fedvpt_supcon"]


def smoothed(small: tiny.MiniRun, share: float = 0.2) -> tiny.MiniRun:
    """The run with smoothed labels."""
    local = small.trainer.local.model_copy(update={"label_smoothing": share})
    return dataclasses.replace(small, trainer=dataclasses.replace(small.trainer, local=local))


def test_label_smoothing_is_that_of_torch_also_beside_a_prior_and_in_pieces() -> None:
    small = smoothed(one_step("fedvpt", logit_prior="train"))
    report = small.round(COHORT, piece=3)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        images, y = data(small, k)
        leaves = [sent[name].clone().requires_grad_() for name in MODEL]
        prior = 1e-6 / tiny.CLASSES + (1 - 1e-6) * torch.bincount(y, minlength=tiny.CLASSES).double() / len(y)
        logits = feature(small, images, leaves[0]) @ leaves[1].T + leaves[2] + prior.log()
        loss = F.cross_entropy(logits, y, label_smoothing=0.2)
        assert report.loss[row].item() == pytest.approx(loss.item(), rel=1e-5)
        for name, leaf, g in zip(MODEL, leaves, torch.autograd.grad(loss, leaves), strict=True):
            assert (updated[name] - leaf + LR * g).abs().max() < 1e-6


def test_clients_that_choose_by_loss_compare_the_smoothed_loss_with_which_they_train() -> None:
    class Reporting(type(tiny.METHODS["ifca"])):  # type: ignore[misc]
        def choose_by_loss(self, p: dict[str, Tensor], per_set: dict[str, Tensor]) -> dict[str, Tensor]:
            return super().choose_by_loss(p, per_set) | {"first": per_set["0"]}

    small = smoothed(one_step("ifca"))
    model = dataclasses.replace(small.model, method=Reporting())
    trainer = dataclasses.replace(small.trainer, model=model)
    server = small.server
    _, losses = chosen(trainer, server.send(torch.tensor(COHORT)), server.read(), [small.train[k] for k in COHORT])
    for row, k in enumerate(COHORT):
        images, y = data(small, k)
        z = feature(small, images, server.values["sets"][0])
        logits = z @ server.values["head.weight"].T + server.values["head.bias"]
        assert same(losses["first"][row], F.cross_entropy(logits, y, label_smoothing=0.2))


def supervised_contrast(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """L_out of Khosla et al. 2020, equation 2, sample by sample; a sample without a partner counts zero."""
    z, total = z / z.norm(dim=1, keepdim=True), z.new_zeros(())
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        partners = [a for a in others if y[a] == y[i]]
        for p in partners:
            share = (z[i] @ z[p] / temperature).exp() / sum((z[i] @ z[a] / temperature).exp() for a in others)
            total = total - share.log() / len(partners)
    return total / len(z)


@pytest.mark.parametrize("change", [{}, {"piece": 3}])
def test_supervised_contrast_is_that_of_the_paper_over_whole_batches(change: dict[str, int]) -> None:
    """Clients of 9, 7, 12 and 1 samples, so that batches have padding; also where other methods' passes are pieces."""
    small = one_step("fedvpt_supcon", contrast=0.7, temperature=0.3)
    report = small.round((4, 0, 2, 5), **change)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        images, y = data(small, k)
        leaves = [sent[name].clone().requires_grad_() for name in MODEL]
        z = feature(small, images, leaves[0])
        loss = F.cross_entropy(z @ leaves[1].T + leaves[2], y) + 0.7 * supervised_contrast(z, y, 0.3)
        for name, leaf, g in zip(MODEL, leaves, torch.autograd.grad(loss, leaves), strict=True):
            assert same(updated[name], leaf - LR * g)


def test_supervised_contrast_by_hand() -> None:
    """Two of a class at right angles and a third sample opposite to the first: cosines 0, -1 and 0, with tau = 1."""
    cls, y = torch.tensor([[2.0, 0], [0, 3], [-1, 0]]), torch.tensor([1, 1, 0])
    out = {"cls": cls, "y": y, "weight": torch.ones(3)}
    made = dataclasses.replace(SUPCON, contrast=1.0, temperature=1.0).extra_loss({}, {}, out, None)
    assert torch.allclose(made, torch.tensor([math.log(1 + math.exp(-1)), math.log(2), 0]))


class BlindToPadding(type(SUPCON)):  # type: ignore[misc]
    """A loss that takes the padding of a batch for samples."""

    def extra_loss(
        self, p: dict[str, Tensor], received: dict[str, Tensor], out: dict[str, Tensor], query: None
    ) -> Tensor:
        return super().extra_loss(p, received, out | {"weight": torch.ones_like(out["weight"])}, query)


class Undeclared(type(SUPCON)):  # type: ignore[misc]
    """A loss that reads other samples and does not say so."""

    reads_batch = False

    def extra_loss(
        self, p: dict[str, Tensor], received: dict[str, Tensor], out: dict[str, Tensor], query: None
    ) -> Tensor:
        return (out["cls"] - out["cls"].mean(0)).square().mean(-1)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (BlindToPadding(), r'leave out samples whose `out["weight"]` is 0'),
        (Undeclared(), "depends on that sample alone, or `reads_batch = True`"),
    ],
)
def test_the_contract_sees_losses_that_depend_on_padding_or_secretly_on_other_samples(method, message) -> None:
    assert message in (violation(isolation.samples_do_not_see_each_other, Case(method)) or "")
