"""Multiply-adds counted from shapes equal those that torch counts while a client trains and is evaluated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CLASSES, METHODS, mini_run, plugins
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedbench.method import Aggregation
from fedbench.plan.planning import check_sweep
from fedbench.run import cost
from fedbench.run.server import parameters
from fedbench.vit.backbone import architecture

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


@pytest.mark.parametrize("name", ["fedvpt", "fedvpt_deep", "pep_fedpt", "pfedpt", "head_only", "fedncm"])
def test_a_forward_pass_is_counted_to_a_hundredth(name):
    small, _ = run_and_batches(name)
    model = small.model
    values = small.server.send(torch.tensor([CLIENT])) | small.server.read()
    index = torch.from_numpy(small.train[CLIENT])[None]
    with torch.no_grad():
        flip = torch.zeros(index.shape, dtype=torch.bool)  # augmented images have no cached features
        theirs = counted(lambda: model.forward(values, index, False, "flip", flip, torch.zeros(*index.shape, 2)))
    head = CLASSES * model.backbone.width
    ours = cost.one_pass(model.method, model.spec, model.backbone).forward + head
    assert SAMPLES * ours == pytest.approx(theirs, rel=0.01)


def kept_by_autograd(small, images, autocast):
    """Bytes of the tensors that a local step's forward pass keeps, without parameters; a storage counts once."""
    model = replace(small.model, autocast=autocast)
    parameters = {value.untyped_storage().data_ptr() for value in model.backbone.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its address is not used again
        return tensor

    values = small.server.send(torch.tensor([CLIENT]))
    values = {n: v.requires_grad_(small.model.spec[n].trains) for n, v in values.items()} | small.server.read()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.forward(values, torch.arange(images)[None], add_prior=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("name", ["fedvpt", "fedvpt_deep", "pep_fedpt"])
def test_kept_bytes_are_those_that_autograd_keeps(name):
    """The difference between 48 and 16 images, so that values and constants do not count; the head and norms add a little."""
    small = mini_run(METHODS[name], dtype=torch.float32)
    small.model.backbone.uses_fast_blocks = small.model.backbone.trims_last_block = False
    cost_ = cost.one_pass(small.model.method, small.model.spec, small.model.backbone)
    kept = (kept_by_autograd(small, 48, False) - kept_by_autograd(small, 16, False)) / 32
    assert cost_.kept_bytes("float32") == pytest.approx(kept, rel=0.15)


def vit_base(clients, precision):
    """The images in a pass of FedVPT on ViT-B/16 at 224 px on a GPU, and the GiB that `clients` x 32 images keep."""
    vit = architecture("vit_base_patch16_224")
    method = METHODS["fedvpt"]
    task = cost.task_of(vit, 100, torch.ones(10, 100), seed=0)
    pass_ = cost.one_pass(method, parameters(method, Aggregation(), task), vit)
    images = cost.chunk_images(pass_, torch.device("cuda"), precision)
    return images, clients * 32 * pass_.kept_bytes(precision) / 2**30


def test_ten_clients_of_vit_base_are_one_pass_within_24_gib_in_bfloat16():
    images, kept = vit_base(10, "bfloat16")
    assert images >= 320  # 10 clients x 32 images
    assert 12 < kept < 16  # 12 blocks x 205 tokens x 24 D bytes x 320 images; the rest is for weights and buffers
    assert vit_base(images / 32, "bfloat16")[1] <= 15


def test_a_pass_in_float32_holds_fewer_images():
    images, _ = vit_base(10, "float32")
    assert vit_base(images / 32, "float32")[1] <= 15
    assert images < 320


def test_a_small_backbone_gets_as_many_images_as_fill_a_gpu():
    small = mini_run(METHODS["fedvpt"])
    pass_ = cost.one_pass(small.model.method, small.model.spec, small.model.backbone)
    assert cost.chunk_images(pass_, torch.device("cuda"), "float32") == cost.GPU_CHUNK_TOKENS // max(pass_.tokens)


def test_the_block_with_the_most_tokens_says_how_many_images_are_a_pass():
    pass_ = cost.PassCost(
        0,
        0,
        tokens=(17, 21, 19),
        width=64,
        hidden=256,
        kept_tokens=57,
        trains_backbone=False,
        kept_block=512,
        kept_readout=(0, 0),
    )
    assert cost.chunk_images(pass_, torch.device("cpu")) == (4 << 20) // (21 * 256 * 4)
    assert cost.chunk_images(pass_, torch.device("cuda")) == 200_000 // 21


def test_hooks_get_a_query_while_costs_are_counted_only_if_the_method_uses_it():
    seen = []

    class Spy(type(METHODS["fedvpt"])):
        def prompts(self, layer, p, cls, query):
            seen.append(query is not None)
            return super().prompts(layer, p, cls, query)

    class Asking(Spy):
        uses_query = True

    small = mini_run(METHODS["fedvpt"])
    for method in (Spy(), Asking()):
        cost.one_pass(method, small.model.spec, small.model.backbone)
    assert seen == [False, True]


def planned_run(folder, method=None, rounds=7, **machine):
    """FedVPT with four prompts on nano: 300 training and 100 test images, 5 clients of which 2 train in a round."""
    base = {
        "dataset": {"name": "npz", "path": str(folder / "images.npz")},
        "partition": "iid",
        "method": method or {"name": "fedvpt", "prompt_length": 4},
        "clients": {"number": 5, "per_round": 2, "validation": 0.2},
        "local": {"epochs": 3},
        "rounds": rounds,
    }
    images, labels = np.zeros((400, 32, 32, 3), np.uint8), np.arange(400) % 10
    np.savez(folder / "images.npz", images=images, labels=labels, is_test=np.arange(400) % 4 == 0)
    sweep = check_sweep({"base": base, "machine": {"data": str(folder), **machine}}, plugins())
    return cost.estimate(sweep.runs[0], sweep.plugins, sweep.machine)


def test_an_estimate_is_the_sum_of_its_parts(tmp_path):
    width, depth, hidden, patches, prompts, classes = 128, 6, 512, 16, 4, 10
    tokens = 1 + patches + prompts
    block = 4 * width**2 + 2 * width * hidden + 9 * width + hidden  # weights; biases and two norms
    frozen = (3 * 8 * 8 + 1) * width + (1 + 1 + patches) * width + depth * block + 2 * width
    assert frozen == sum(value.numel() for value in architecture("nano").parameters())
    values = prompts * width + classes * width + classes  # of one client
    estimate = planned_run(tmp_path, chunk_images=3)
    activations = 4 * 3 * depth * tokens * (8 * width + 2 * hidden)
    rest = 4 * frozen + 400 * 3 * 32 * 32 + 4 * values * (4 * 2 + 5)
    assert estimate.memory_bytes == (700 << 20) + activations + rest
    # 2 of 5 clients with 240 of 300 images for training; attention's and MLP's products, the last block for one token
    whole = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    last = 2 * tokens * width**2 + 2 * tokens * width + 2 * width**2 + 2 * width * hidden
    forward = patches * 3 * 64 * width + (depth - 1) * whole + last
    backward = (depth - 1) * (whole + 2 * tokens**2 * width) + last + 2 * tokens * width
    assert estimate.multiply_adds == 7 * 3 * 2 * 48 * (forward + backward)
    # As many images as fill 4 MiB with the MLP's activations, in float32
    unset = planned_run(tmp_path)
    images = (4 << 20) // (tokens * hidden * 4)
    assert unset.memory_bytes == (700 << 20) + activations // 3 * images + rest


@pytest.mark.parametrize(("rounds", "clients"), [(2, 4), (7, 5)])
def test_features_that_are_kept_are_estimated_once_for_each_client_that_takes_part(tmp_path, rounds, clients):
    width, depth, hidden, patches = 128, 6, 512, 16
    tokens = 1 + patches
    whole = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    last = 2 * tokens * width**2 + 2 * tokens * width + 2 * width**2 + 2 * width * hidden
    features = patches * 3 * 64 * width + (depth - 1) * whole + last
    estimate = planned_run(tmp_path, "head_only", rounds)  # the head itself is not counted
    assert estimate.multiply_adds == clients * 48 * features


def test_an_estimate_is_of_the_image_size_that_the_run_names():
    assert cost._architecture("vit_tiny_patch16_224", 96, None).image_size == 96
