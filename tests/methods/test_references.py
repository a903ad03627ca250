"""References: full fine-tuning is a plain PyTorch client, LoRA is W + BA, central VPT is one client with everyone's data."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedbench.data import batches
from fedbench.run import cost

METHOD = tiny.plugins().classes["method"]
F64 = torch.float64


def test_full_finetuning_is_a_plain_pytorch_client():
    small = tiny.mini_run(METHOD["full_finetune"](backbone_lr_scale=0.5), clip=None)
    recipe, prefix = small.trainer.local, "vit."
    clients = (0, 5)
    report = small.round(clients)
    for row, k in enumerate(report.clients.tolist()):
        vit = copy.deepcopy(small.model.backbone.vit).requires_grad_(True)
        head = nn.Linear(32, tiny.CLASSES, dtype=F64)
        with torch.no_grad():
            head.weight.copy_(report.received["head.weight"][row])
            head.bias.zero_()
        optimizer = torch.optim.SGD(
            [{"params": vit.parameters(), "lr": recipe.lr / 2}, {"params": head.parameters()}],
            lr=recipe.lr,
            momentum=0.9,
            weight_decay=recipe.weight_decay,
        )
        plan = batches(small.train, [k], recipe.batch_size, recipe.epochs, 0, 1, 0)
        for index, weight in zip(plan.index[:, 0], plan.weight[:, 0], strict=True):
            now = torch.from_numpy(index[weight > 0])
            optimizer.zero_grad()
            logits = head(vit.forward_features(small.model.images.batch(now))[:, 0])
            F.cross_entropy(logits, small.model.labels[now]).backward()
            optimizer.step()
        for name, value in vit.named_parameters():
            assert (report.updated[prefix + name][row] - value).abs().max() < 1e-10, (k, name)
            assert (report.updated[prefix + name][row] - report.received[prefix + name][row]).abs().max() > 0, name
        assert (report.updated["head.weight"][row] - head.weight).abs().max() < 1e-10


def test_full_finetuning_sends_the_whole_network():
    small = tiny.mini_run(METHOD["full_finetune"]())
    count = sum(v.numel() for v in small.model.backbone.vit.parameters()) + tiny.CLASSES * 33
    assert small.server.bytes_per_client() == (4 * count, 4 * count)


@pytest.mark.parametrize("target", ["qv", "qkv"])
def test_lora_is_the_backbone_with_w_plus_ba(target):
    """Each client's logits are those of a timm ViT whose qkv rows are W + (alpha/r) B A, block by block."""
    small = tiny.mini_run(METHOD["lora"](rank=2, alpha=3.0, target=target))
    sent = small.server.send(torch.tensor([0, 4]))
    assert sent["B"].abs().max() == 0  # it starts as the frozen backbone
    torch.manual_seed(0)
    sent["B"] = torch.randn_like(sent["B"])
    index = torch.tensor([[3, 40, 7], [1, 2, 50]])
    logits = small.model.forward(sent, index, add_prior=False).logits
    for k in range(2):
        vit = copy.deepcopy(small.model.backbone.vit)
        for block in range(4):
            A, B = sent["A"][k, block], sent["B"][k, block]  # [J, 2, 32], [J, 32, 2]
            weight = vit.blocks[block].attn.qkv.weight  # [96, 32]: q, k, v
            with torch.no_grad():
                weight[:32] += 3 / 2 * B[0] @ A[0]
                weight[64:] += 3 / 2 * B[-1] @ A[-1]
                if target == "qkv":
                    weight[32:64] += 3 / 2 * B[1] @ A[1]
        with torch.no_grad():
            cls = vit.forward_features(small.model.images.batch(index[k]))[:, 0]
        expected = cls @ sent["head.weight"][k].T + sent["head.bias"][k]
        assert (logits[k] - expected).abs().max() < 1e-10


def test_lora_trains_a_few_parameters():
    """2 projections x 4 blocks x r (D + D), and the head."""
    spec = tiny.mini_run(METHOD["lora"](rank=3)).server.spec
    assert sum(p.init.numel() for p in spec.values() if p.trains) == 2 * 4 * 3 * (32 + 32) + tiny.CLASSES * 33


@pytest.mark.parametrize("name", ["lora", "full_finetune", "central_vpt"])
@pytest.mark.parametrize("lean", [True, False])
def test_multiply_adds_are_those_that_torch_counts(name, lean):
    """As in tests/test_backbone.py, for clients with a pass of their own."""
    small = tiny.mini_run(METHOD[name]())
    vit, spec = small.model.backbone, small.server.spec
    vit.trims_last_block, vit.uses_fast_blocks = lean, False  # what a method costs, not what this machine saves of it
    counted = cost.one_pass(small.model.method, spec, vit)
    index = torch.arange(16).view(1, 16)
    values = {n: v.requires_grad_(spec[n].trains) for n, v in small.server.send(torch.tensor([2])).items()}
    with FlopCounterMode(display=False) as forward, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = small.model.forward(values, index, add_prior=False).logits
    with FlopCounterMode(display=False) as backward, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.autograd.backward(logits.sum())
    assert forward.get_total_flops() / 2 / 16 == pytest.approx(counted.forward, rel=0.05)
    assert backward.get_total_flops() / 2 / 16 == pytest.approx(counted.backward, rel=0.08)


def test_central_vpt_is_one_client_with_everyones_data():
    """The pooled round of the core, with the images of a cohort's size, is the round of a FedVPT client that holds them."""
    central, vpt = tiny.mini_run(METHOD["central_vpt"]()), tiny.mini_run(METHOD["fedvpt"]())
    pool = (np.arange(12),)  # as many samples as clients 0 and 3 hold
    parts = [dataclasses.replace(small, train=pool) for small in (central, vpt)]
    first, other = (small.round([0]) for small in parts)
    for name in ("prompt", "head.weight", "head.bias"):
        assert torch.equal(first.updated[name], other.updated[name])
    assert central.model.method.centralized
    assert central.model.method.reference
