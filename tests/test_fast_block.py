"""The hand-written frozen block gives timm's numbers; `thread_map` gives the same numbers on any number of threads."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from timm.models.vision_transformer import Block, VisionTransformer

from fedbench.jobs import malloc_tuning
from fedbench.vit import fast_block, thread_map
from fedbench.vit.backbone import Backbone


def make_block(**options):
    torch.manual_seed(0)
    block = Block(24, 3, qkv_bias=True, **options).double().eval().requires_grad_(False)
    for value in block.parameters():
        value.copy_(torch.randn(value.shape) / 3)  # norms and biases too
    return block


def relative_error(actual, expected):
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def test_a_frozen_block_gives_timms_numbers_and_gradients():
    block, x = make_block(), torch.randn(5, 7, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 7, 24, dtype=torch.float64)
    assert fast_block.is_supported(block)
    assert fast_block.is_applicable(block, x)
    expected, actual = block(x), fast_block.run_block(block, x)
    assert relative_error(actual, expected) < 1e-14
    (gradient,), (twin,) = (torch.autograd.grad((out * weight).sum(), x) for out in (actual, expected))
    assert relative_error(gradient, twin) < 1e-13


def test_the_gradient_of_slots_alone_is_the_same():
    block = make_block()
    cls, slots, patches = (torch.randn(5, n, 24, dtype=torch.float64) for n in (1, 3, 4))
    weight = torch.randn(5, 8, 24, dtype=torch.float64)
    slots.requires_grad_()
    x = torch.cat([cls, slots, patches], 1)
    (twin,) = torch.autograd.grad((block(x) * weight).sum(), slots)
    (actual,) = torch.autograd.grad((fast_block.run_block(block, x.detach(), x[:, 1:4]) * weight).sum(), slots)
    assert relative_error(actual, twin) < 1e-13


@pytest.mark.parametrize(
    "options", [{"qk_norm": True}, {"init_values": 0.1}, {"act_layer": torch.nn.ReLU}, {"scale_mlp_norm": True}]
)
def test_blocks_of_another_form_are_not_supported(options):
    assert not fast_block.is_supported(make_block(**options))


def test_it_applies_to_float_training_with_frozen_weights_only():
    block, x = make_block(), torch.randn(1, 3, 24, dtype=torch.float64)
    assert not fast_block.is_applicable(block, x)  # no gradient
    x.requires_grad_()
    with torch.no_grad():
        assert not fast_block.is_applicable(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fast_block.is_applicable(block, x)
    block.mlp.fc2.weight.requires_grad_()
    assert not fast_block.is_applicable(block, x)  # a trained weight


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 2), (0, 1, 2, 3), (3,)])
@pytest.mark.parametrize("below", [False, True])
def test_a_backbone_with_shortcuts_gives_the_same_gradients(layers, below):
    """`below`: the pixels need a gradient too, as with a trained border of pixels."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=0).double()
    backbone = Backbone(vit, (0.5,) * 3, (0.5,) * 3)
    assert backbone.uses_fast_blocks
    assert backbone.trims_last_block
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=below)
    prompts = {layer: torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True) for layer in layers}
    weight = torch.randn(24, dtype=torch.float64)

    def gradients():
        read, _ = backbone(images, layers, lambda layer, _: {"deep": prompts[layer]}, slots_read=False)
        leaves = [*prompts.values(), *([images] if below else [])]
        return [read["cls"], *torch.autograd.grad((read["cls"] * weight).sum(), leaves)]

    with_shortcuts = gradients()
    backbone.uses_fast_blocks = backbone.trims_last_block = False
    for fast, plain in zip(with_shortcuts, gradients(), strict=True):
        assert relative_error(fast, plain) < 1e-12


@pytest.mark.parametrize("name", ["fedvpt", "pep_fedpt", "full_finetune"])
def test_a_round_without_shortcuts_is_the_same(name):
    small = tiny.mini_run(tiny.plugins().classes["method"][name]())
    small.report_statistics(range(tiny.CLIENTS))
    short = small.round((0, 2, 4))
    small.model.backbone.trims_last_block = small.model.backbone.uses_fast_blocks = False
    whole = small.round((0, 2, 4))
    for key, value in whole.updated.items():
        assert (value - short.updated[key]).abs().max() < 1e-10, key


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_piece_of_work_runs_on_one_thread(two_threads):
    cpu = torch.device("cpu")
    assert thread_map.thread_map(lambda _: torch.get_num_threads(), range(4), cpu) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2
    # a single item gets all threads
    assert thread_map.thread_map(lambda _: torch.get_num_threads(), [0], cpu) == [2]
    assert thread_map.thread_map(lambda i: i * i, range(5), cpu) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        thread_map.thread_map(lambda i: 1 / i, [1, 0, 2], cpu)
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_changes_no_bit(two_threads):
    small = tiny.mini_run(tiny.plugins().classes["method"]["pep_fedpt"]())
    small = dataclasses.replace(small, trainer=dataclasses.replace(small.trainer, chunk=1))
    small.report_statistics(range(tiny.CLIENTS))
    two = small.round((0, 2, 4))
    torch.set_num_threads(1)
    single = small.round((0, 2, 4))
    for key, value in single.updated.items():
        assert torch.equal(value, two.updated[key]), key


def test_freed_memory_can_be_kept():
    assert malloc_tuning.keep_freed_memory() is (malloc_tuning.platform.libc_ver()[0] == "glibc")
