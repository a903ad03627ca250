"""The frozen backbone: any timm ViT by name or file, any size, clear refusals; its images and costs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from fedbench.run import cost
from fedbench.vit import backbone
from fedbench.vit.backbone import BackboneError
from fedbench.vit.images import Images, translate
from fedbench.vit.weights import WeightsError, fitting_state, load_weights


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
        features = made(images)[0]["cls"]
    assert torch.allclose(features, expected, atol=1e-5)
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
    ("name", "options", "message"),
    [
        ("vit_tinny_patch16_224", {}, "no timm model is called 'vit_tinny_patch16_224'"),
        ("resnet18", {}, "not a supported ViT: it is of the class ResNet"),
        pytest.param(
            "vit_small_r26_s32_224",
            {},
            r"its patches come from a separate network \(HybridEmbed\)",
            marks=pytest.mark.slow,
        ),
        ("vit_base_mci_224", {}, r"its patches come from a separate network \(HybridEmbed\)"),
        ("deit_tiny_distilled_patch16_224", {}, "it has a distillation token beside CLS"),
        ("beit_base_patch16_224", {}, "it is of the class Beit. Supported: .* by attention pooling .*DINOv3, EVA-02"),
        ("vit_base_patch16_siglip_224", {"pool": "token"}, "cannot have pool 'token': it has no CLS token"),
        ("clip_nano", {"pool": "avg"}, "clip_nano is read at its CLS token"),
        (
            "clip_nano",
            {"weights": Path("a.safetensors")},
            "clip_nano comes with its weights; .* is two_towers with `weights`",
        ),
        ("vit_tiny_patch16_224", {"image_size": 100, "pretrained": False}, "100"),
        ("nano", {"image_size": 64}, "nano comes with its weights and takes 32 px"),
        ("nano_plain", {"image_size": 64}, "nano_plain comes with its weights and takes 32 px"),
        ("nano_plane", {}, "no timm model is called 'nano_plane'; .* an embedded one: nano, nano_plain"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_what_is_missing(name, options, message):
    with pytest.raises(BackboneError, match=message):
        backbone.make(name, **options)
    options = {key: value for key, value in options.items() if key != "pretrained"}
    with pytest.raises(BackboneError, match=message):
        backbone.architecture(name, **options)


@pytest.mark.parametrize(
    "name", ["nano", "vit_tiny_patch16_224", "vit_base_patch14_reg4_dinov2", "deit3_small_patch16_224"]
)
def test_the_number_of_tokens_is_timms(name):
    """Prefix tokens and the patch grid, as the position embedding and a pass of timm's own model have them."""
    made = backbone.architecture(name, 56 if "dinov2" in name else None)
    images = torch.empty(1, 3, made.image_size, made.image_size, device="meta")
    assert made.vit.forward_features(images).shape == (1, made.tokens, made.width)
    assert len(made.vit.blocks) == made.depth
    assert all(value.is_meta for value in made.parameters())


def test_files_that_do_not_fit_are_named(weights, tmp_path):
    with pytest.raises(BackboneError, match=r"tiny.safetensors does not fit this architecture: .* another shape"):
        backbone.make("vit_small_patch16_224", weights)
    with pytest.raises(BackboneError, match=r"192[^\]]*\] instead of \[[^\]]*384"):
        backbone.architecture("vit_small_patch16_224", weights=weights)
    broken = tmp_path / "half.safetensors"
    broken.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"half.safetensors: not a readable safetensors file"):
        backbone.make("vit_tiny_patch16_224", broken)
    with pytest.raises(BackboneError, match="absent"):
        backbone.make("vit_tiny_patch16_224", tmp_path / "absent.safetensors")


# -- published checkpoints -----------------------------------------------------------------------------------------------------
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(1)
    return VisionTransformer(**SMALL).eval()


def loaded(path):
    fresh = VisionTransformer(**SMALL).eval()
    load_weights(path, fresh)
    with torch.device("meta"):
        bare = VisionTransformer(**SMALL)
        assert fitting_state(path, bare, "meta").keys() == bare.state_dict().keys()  # planning finds what loading does
    return fresh.state_dict()


def same(actual, expected):
    return actual.keys() == expected.keys() and all(
        torch.equal(value, actual[name]) for name, value in expected.items()
    )


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "teacher.backbone.", "module.vit.", "model.encoder."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_prefixes_of_published_checkpoints_are_taken_off(prefix, suffix, vit, tmp_path):
    state = {f"{prefix}{name}": value for name, value in vit.state_dict().items()}
    state |= {f"{prefix}head.weight": torch.ones(3, 16), "head.mlp.0.weight": torch.ones(2, 2)}
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert same(loaded(path), vit.state_dict())


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher", "target_encoder"])
def test_a_torch_file_with_the_weights_under_a_key_is_read(key, vit, tmp_path):
    content = {
        key: {f"module.{name}": value for name, value in vit.state_dict().items()},
        "epoch": 3,
        "args": {"lr": 1.0},
    }
    content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}}
    torch.save(content, tmp_path / "w.pth")
    assert same(loaded(tmp_path / "w.pth"), vit.state_dict())


def test_of_student_and_teacher_the_teacher_is_read(vit, tmp_path):
    student = {f"module.backbone.{name}": value + 1 for name, value in vit.state_dict().items()}
    teacher = {f"backbone.{name}": value for name, value in vit.state_dict().items()}
    torch.save({"student": student, "teacher": teacher}, tmp_path / "dino.pth")
    assert same(loaded(tmp_path / "dino.pth"), vit.state_dict())


def test_the_decoder_of_a_masked_autoencoder_is_left_out(vit, tmp_path):
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 17, 8),
        "decoder_norm.bias": torch.ones(8),
    }
    decoder |= {"decoder_blocks.0.attn.qkv.weight": torch.ones(24, 8), "decoder_pred.weight": torch.ones(3, 8)}
    torch.save({"model": vit.state_dict() | decoder}, tmp_path / "mae.pth")
    assert same(loaded(tmp_path / "mae.pth"), vit.state_dict())


def hugging_face(state):
    """A timm state under the names of transformers' ViTModel, whose query, key and value are apart."""
    made = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
        "pooler.dense.weight": torch.ones(16, 16),
    }
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for kind in ("weight", "bias"):
        made[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        for block in range(2):
            for ours, theirs in parts.items():
                made[f"encoder.layer.{block}.{theirs}.{kind}"] = state[f"blocks.{block}.{ours}.{kind}"]
            joint = state[f"blocks.{block}.attn.qkv.{kind}"].chunk(3)
            for part, value in zip(("query", "key", "value"), joint, strict=True):
                made[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = value.contiguous()
    return made


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_the_names_of_hugging_face_are_known(prefix, vit, tmp_path):
    state = {f"{prefix}{name}": value for name, value in hugging_face(vit.state_dict()).items()}
    save_file(state | {"classifier.weight": torch.ones(3, 16)}, tmp_path / "model.safetensors")
    assert same(loaded(tmp_path / "model.safetensors"), vit.state_dict())


def test_the_names_of_dinov2_at_hugging_face_are_known(tmp_path):
    """With layer scale and register tokens."""
    torch.manual_seed(2)
    options = {**SMALL, "init_values": 0.1, "reg_tokens": 4}
    state = VisionTransformer(**options).state_dict()
    theirs = {"embeddings.register_tokens": state["reg_token"], "embeddings.mask_token": torch.ones(1, 16)}
    changes = {"layernorm_before": "norm1", "layernorm_after": "norm2", r"intermediate\.dense": "mlp.fc1"}
    for name, value in hugging_face(state).items():
        for pattern, replacement in (changes | {r"(layer\.\d+)\.output\.dense": r"\1.mlp.fc2"}).items():
            name = re.sub(pattern, replacement, name)
        theirs[name] = value
    for block in range(2):
        for scale in (1, 2):
            theirs[f"encoder.layer.{block}.layer_scale{scale}.lambda1"] = state[f"blocks.{block}.ls{scale}.gamma"]
    save_file(theirs, tmp_path / "model.safetensors")
    fresh = VisionTransformer(**options)
    load_weights(tmp_path / "model.safetensors", fresh)
    assert same(fresh.state_dict(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {n: v for n, v in s.items() if n != "cls_token"},
            "no cls_token; its .* keys begin with blocks, norm",
        ),
        (
            lambda s: {f"{p}.{n}": v.clone() for p in "ab" for n, v in s.items()},
            "several models, with the prefixes 'a.', 'b.'",
        ),
        (lambda s: s | {"adapter.down.weight": torch.ones(2)}, r"1 unknown \['adapter.down.weight'\]"),
        (
            lambda s: {n: v for n, v in s.items() if "blocks.1.mlp.fc1" not in n},
            r"2 tensors missing \['blocks.1.mlp.fc1.bias'",
        ),
        (
            lambda s: s | {"norm.bias": torch.full((16,), torch.nan)},
            "the tensor norm.bias holds 16 values that are NaN",
        ),
        (
            lambda s: s | {"blocks.0.mlp.fc1.bias": torch.full((64,), torch.inf)},
            "tensor blocks.0.mlp.fc1.bias holds 64",
        ),
    ],
    ids=["no CLS token", "two models", "unknown", "missing", "NaN", "infinite"],
)
def test_a_checkpoint_that_does_not_fit_says_what_is_in_the_way(change, message, vit, tmp_path):
    save_file(change(vit.state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        loaded(tmp_path / "w.safetensors")


def test_nan_in_downloaded_weights_is_refused_by_tensor_name(monkeypatch):
    created = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    with torch.no_grad():
        created.blocks[3].mlp.fc1.weight[0, 0] = torch.nan
    monkeypatch.setattr(backbone, "_created", lambda *_: created)
    with pytest.raises(
        BackboneError, match=r"the tensor blocks.3.mlp.fc1.weight holds 1 values that are NaN or infinite"
    ):
        backbone.make("vit_tiny_patch16_224")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"<html>sign in</html>"])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_named(content, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\{suffix}: not a readable"):
        loaded(path)


@pytest.mark.parametrize("name", ["fedvpt", "fedvpt_deep", "pep_fedpt"])
@pytest.mark.parametrize("lean", [True, False])
def test_multiply_adds_are_those_that_torch_counts(name, lean):
    """torch counts two operations a multiply-add, and also those of heads, priors and mixtures, which are small."""
    small = tiny.mini_run(tiny.plugins().classes["method"][name]())
    vit, spec = small.model.backbone, small.server.spec
    vit.trims_last_block, vit.uses_fast_blocks = lean, False  # what a method costs, not what this machine saves of it
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
