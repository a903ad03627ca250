"""Multiply-adds counted from shapes equal those that torch counts while a client trains and is evaluated."""

from __future__ import annotations

import pytest
import torch
from tiny import CLASSES, METHODS, mini_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedbench.run import cost

CLIENT, SAMPLES = 2, 12  # of the miniature run: 12 samples in batches of 4, without padding


def counted(work):
    """Multiply-adds of `work` by torch's counter, with attention as separate matrix products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def run_and_batches(name):
    small = mini_run(METHODS[name], epochs=1)
    small.model.backbone.uses_fast_blocks = False  # count the method's cost, not this machine's savings
    small.report_statistics([CLIENT])
    return small, small.batches([CLIENT])


@pytest.mark.parametrize("name", METHODS)
def test_counting_needs_no_values_on_the_backbones_device(name):
    """On a GPU the backbone's tensors and the initial values are on different devices; meta tensors refuse to mix as well."""
    small = mini_run(METHODS[name])
    method, spec, vit = small.model.method, small.model.spec, small.model.backbone
    expected = cost.training(method, spec, vit), cost.one_pass(method, spec, vit)
    vit.to("meta")
    assert (cost.training(method, spec, vit), cost.one_pass(method, spec, vit)) == expected


# What hooks compute beside the backbone is left out of the count. For these it is the head's product, forward and backward
# for its weights and, unless features are cached, its input; and LoRA's two low-rank products a block, once a batch.
@pytest.mark.parametrize(
    ("name", "products"), [("fedvpt", 3), ("fedvpt_deep", 3), ("full_finetune", 3), ("lora", 3), ("head_only", 2)]
)
def test_training_is_counted_exactly_but_for_the_hooks(name, products):
    small, batches = run_and_batches(name)
    method, vit = small.model.method, small.model.backbone
    ours = cost.training(method, small.model.spec, vit)
    hooks = SAMPLES * products * CLASSES * vit.width
    if name == "lora":
        hooks += len(batches[0].active) * vit.depth * 2 * 3 * method.rank * vit.width**2
    assert counted(lambda: small.round([CLIENT], batches=batches)) == SAMPLES * ours + hooks


@pytest.mark.parametrize("name", ["pfedpt", "fedrep", "fedpgp", "pep_fedpt", "sgpt", "pfedpg", "fedpr", "pfpt"])
def test_training_is_counted_to_a_hundredth(name):
    """Phases, views, borders of images; the rest are the hooks' own small products."""
    small, batches = run_and_batches(name)
    model = small.model
    ours = SAMPLES * cost.training(model.method, model.spec, model.backbone)
    assert ours == pytest.approx(counted(lambda: small.round([CLIENT], batches=batches)), rel=0.01)


@pytest.mark.parametrize("name", ["fedvpt", "fedvpt_deep", "pep_fedpt", "pfedpt", "head_only"])
def test_a_forward_pass_is_counted_to_a_hundredth(name):
    small, _ = run_and_batches(name)
    model = small.model
    values = small.server.send(torch.tensor([CLIENT])) | small.server.read()
    index = torch.from_numpy(small.train[CLIENT])[None]
    with torch.no_grad():
        theirs = counted(lambda: model.forward(values, index, add_prior=False))
    head = CLASSES * model.backbone.width
    ours = cost.one_pass(model.method, model.spec, model.backbone).forward + head
    assert SAMPLES * ours == pytest.approx(theirs, rel=0.01)
