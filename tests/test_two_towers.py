"""Vision-language models as backbones: features equal open_clip's own, and what cannot be read is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from fedbench.base.home import HOME
from fedbench.cli import check, sweep
from fedbench.text.class_texts import ClassTexts, text_side
from fedbench.vit import backbone, two_towers

NAMES = ("cat", "red_fox", "blackbird")
CPU = torch.device("cpu")
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip", reason="needs the extra clip")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_both_towers_of_an_open_clip_model_give_its_own_features(open_clip, activation, tmp_path):
    name = f"tiny-{activation}"
    (tmp_path / f"{name}.json").write_text(json.dumps(CONFIG | {"quick_gelu": activation == "quick_gelu"}))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    full, weights = f"open_clip/{name}", tmp_path / "w.safetensors"
    vit = backbone.make(full, weights)
    texts = ClassTexts.of(text_side(full, weights, None, CPU, torch.float32), NAMES)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(texts.image(vit.feature(images)), theirs.encode_image(images, normalize=True))
        tokens = open_clip.get_tokenizer(name)(
            ["a photo of a cat.", "a photo of a red fox.", "a photo of a blackbird."]
        )
        torch.testing.assert_close(texts.template, theirs.encode_text(tokens[:, :20], normalize=True))
        torch.testing.assert_close(texts.side.scale, theirs.logit_scale.exp())
    assert vit.image_size == 32
    assert backbone.architecture(full, None, weights).depth == 2


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(backbone.BackboneError, match=r"pip install 'fedbench\[clip\]'"):
        backbone.architecture("open_clip/ViT-B-16.openai")


def test_a_sweep_on_an_open_clip_model_without_the_extra_is_one_message_and_writes_nothing(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.chdir(tmp_path)
    base = {"backbone": {"name": "open_clip/ViT-B-16.openai"}, "dataset": {"name": "glyphs"}, "partition": "iid"}
    base |= {"rounds": 1, "clients": {"number": 4, "per_round": 2}}
    (tmp_path / "x.yaml").write_text(
        json.dumps({"name": "x", "base": base, "grid": {"method": ["promptfl", "fedvpt"]}})
    )
    for options in ([], ["--dry-run"]):
        assert sweep.main(["x.yaml", *options]) == 2
        message = capsys.readouterr().err
        assert message.count("open_clip_torch, which is not installed: pip install 'fedbench[clip]'") == 1, message
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_methods_with_text_are_checked_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    file = HOME / "methods" / "clip_zero_shot.py"
    assert check.main([str(file)]) == check.FINE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}: method clip_zero_shot")
    assert len(lines) > 5
    assert all(line.startswith("  ok ") for line in lines[1:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip/ViT-B-17", "no open_clip model is called 'ViT-B-17'; near: ViT-B-16"),
        ("open_clip/RN50.openai", "'RN50' is not a ViT with CLIP's text transformer"),
        ("open_clip/ViT-B-16.nobody", "add the tag of its weights, such as open_clip/ViT-B-16."),
        ("open_clip/ViT-B-16", "add the tag of its weights, such as open_clip/ViT-B-16."),
        ("two_towers", "two_towers needs `weights:`"),
    ],
)
def test_a_model_that_there_is_not_is_named(open_clip, name, message):
    with pytest.raises(backbone.BackboneError, match=message):
        backbone.architecture(name)


def test_a_file_that_is_no_such_model_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(backbone.BackboneError, match=r"a.safetensors: no file of `fedbench.vit.two_towers.write`"):
        backbone.make("two_towers", tmp_path / "a.safetensors")
    block = tiny.write_two_towers(tmp_path / "b.safetensors")
    path = Path(block["weights"])
    sizes, state = two_towers.sizes("two_towers", path), two_towers.tensors("two_towers", path)
    for change, message in (
        ({"logit_scale": torch.tensor(float("nan"))}, "logit_scale holds 1 values that are NaN"),
        ({"visual.cls_token": torch.zeros(1, 1, 31)}, "does not fit its sizes.*cls_token"),
    ):
        two_towers.write(tmp_path / "c.safetensors", sizes, state | change)
        with pytest.raises(backbone.BackboneError, match=message):
            backbone.make("two_towers", tmp_path / "c.safetensors")
    with pytest.raises(backbone.BackboneError, match="two_towers takes 32 px images only"):
        backbone.make("two_towers", tmp_path / "b.safetensors", image_size=64)


def test_a_text_that_is_too_long_is_named(tmp_path):
    path = Path(tiny.write_two_towers(tmp_path / "b.safetensors")["weights"])
    side = text_side("two_towers", path, "a text of a {} that is very long", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"'a text of a caterpillars that is very long' has"):
        ClassTexts.of(side, ["cat", "caterpillars"])
