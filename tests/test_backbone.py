"""The frozen backbone: any timm ViT by name or file, any size, clear refusals; images and costs on the same footing."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from fedbench.run import cost
from fedbench.vit import backbone
from fedbench.vit.backbone import BackboneError
from fedbench.vit.images import Images, translate


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a real timm architecture as a half-precision file, with a head that no backbone needs."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict()
    save_file({name: value.half() for name, value in state.items()}, path)
    return path


def test_a_local_file_gives_timms_own_features(weights):
    torch.manual_seed(0)
    twin = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    twin.load_state_dict({name: value.half().float() for name, value in twin.state_dict().items()})
    made = backbone.make("vit_tiny_patch16_224", weights)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = twin.forward_features(images)[:, 0]
        found = made(images)[0]["cls"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not any(value.requires_grad for value in made.parameters())


def test_position_embeddings_are_resampled_to_the_image_size(weights):
    made = backbone.make("vit_tiny_patch16_224", weights, image_size=96)
    assert made.image_size == 96
    assert made.vit.pos_embed.shape == (1, 1 + 36, 192)
    old = backbone.make("vit_tiny_patch16_224", weights).vit.pos_embed
    grid = old[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert torch.allclose(made.vit.pos_embed, torch.cat([old[:, :1], grid], 1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_tinny_patch16_224", {}, "no timm model is called 'vit_tinny_patch16_224'"),
        ("resnet18", {}, "not a plain ViT"),
        ("vit_tiny_patch16_224", {"image_size": 100, "pretrained": False}, "100"),
        ("nano", {"image_size": 64}, "nano comes with its weights and takes 32 px"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(name, options, said):
    with pytest.raises(BackboneError, match=said):
        backbone.make(name, **options)


def test_files_that_do_not_fit_are_named(weights, tmp_path):
    with pytest.raises(BackboneError, match=r"tiny.safetensors does not fit this architecture: .* another shape"):
        backbone.make("vit_small_patch16_224", weights)
    broken = tmp_path / "half.safetensors"
    broken.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"half.safetensors: not a readable safetensors file"):
        backbone.make("vit_tiny_patch16_224", broken)
    with pytest.raises(BackboneError, match="absent"):
        backbone.make("vit_tiny_patch16_224", tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["fedvpt", "fedvpt_deep", "pep_fedpt"])
@pytest.mark.parametrize("lean", [True, False])
def test_multiply_adds_are_those_that_torch_counts(name, lean):
    """torch counts two operations a multiply-add, and also those of heads, priors and mixtures, which are small."""
    small = tiny.tiny(tiny.plugins().classes["method"][name]())
    vit, spec = small.model.backbone, small.server.spec
    vit.lean, vit.plain = lean, False  # what a method costs, not what this machine saves of it
    counted = cost.one_pass(small.model.method, spec, vit)
    index = torch.arange(8).view(2, 4)
    values = {n: v.requires_grad_(spec[n].trains) for n, v in small.server.send(torch.tensor([0, 2])).items()}
    with FlopCounterMode(display=False) as forward, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = small.model.forward(values | small.server.read(), index, add_prior=False).logits
    with FlopCounterMode(display=False) as backward, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.autograd.backward(logits.sum())
    assert forward.get_total_flops() / 2 / 8 == pytest.approx(counted.forward, rel=0.05)
    assert backward.get_total_flops() / 2 / 8 == pytest.approx(counted.backward, rel=0.08)


def test_resized_images_are_the_same_kept_or_made_again(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    make = lambda: Images(pixels, 32, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"), torch.float32)  # noqa: E731
    kept = make()
    monkeypatch.setattr("fedbench.vit.images.RESIDENT_BYTES", 0)
    again = make()
    assert (kept.resident, again.resident) == (True, False)
    index = torch.tensor([5, 0, 3])
    assert torch.equal(kept.batch(index), again.batch(index))
    same_size = Images(pixels, 20, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"), torch.float64)
    expected = (pixels[3].transpose(2, 0, 1) / 255 - 0.5) / 0.25
    assert np.abs(same_size.batch(index)[2].numpy() - expected).max() < 1e-12


def test_augmentation_moves_and_mirrors():
    pixels = torch.arange(3 * 16).view(1, 3, 4, 4).to(torch.uint8)
    moved = translate(pixels, torch.tensor([[1, 0]]))  # one row up: the last row repeats
    assert torch.equal(moved[0, :, :3], pixels[0, :, 1:])
    assert torch.equal(moved[0, :, 3], pixels[0, :, 3])
    images = Images(pixels.permute(0, 2, 3, 1).numpy(), 4, (0.0,) * 3, (1.0,) * 3, torch.device("cpu"), torch.float64)
    flipped = images.batch(torch.tensor([0]), "flip", torch.tensor([True]))
    assert torch.equal(flipped, images.batch(torch.tensor([0])).flip(3))
