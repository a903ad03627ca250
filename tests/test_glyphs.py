"""The embedded default - glyphs, digits, nano and its control - is what it says: complete, repeatable, of use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from fedbench.data import Samples
from fedbench.plan.plugins import plugins
from fedbench.pretraining import glyph_classes, pretrain_nano
from fedbench.sources.glyph_renderer import SIZE, clean_masks, has_glyph, load_font, render, stream
from fedbench.vit import backbone, nano


def dataset(name: str, **fields: Any) -> Any:
    return plugins().make("dataset", {"name": name, **fields})


@pytest.fixture(scope="module")
def glyphs() -> ModuleType:
    return sys.modules[type(dataset("glyphs")).__module__]


@pytest.fixture(scope="module")
def chars() -> list[str]:
    return glyph_classes.characters()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    loaded: Samples = dataset("glyphs", train_per_class=4, test_per_class=2).load(tmp_path_factory.mktemp("data"))
    return loaded


def test_every_class_and_style_is_in_both_parts(samples: Samples) -> None:
    assert samples.images.shape == (6 * 100 * 6, SIZE, SIZE, 3)
    assert samples.images.dtype == np.uint8
    assert samples.labels.dtype == np.int64
    assert samples.domain is not None
    assert samples.domain.dtype == np.int64
    assert len(set(samples.class_names)) == samples.num_classes == 100
    assert len(set(samples.domain_names)) == 6
    for part, each in ((~samples.is_test, 4), (samples.is_test, 2)):
        cells = np.bincount(samples.domain[part] * 100 + samples.labels[part], minlength=600)
        assert cells.tolist() == [each] * 600


def test_the_default_has_20_and_10_images_per_class_and_style() -> None:
    default = dataset("glyphs")
    assert (default.train_per_class, default.test_per_class) == (20, 10)


def test_drawing_twice_gives_the_same_bits_and_another_seed_others(samples: Samples) -> None:
    again = dataset("glyphs", train_per_class=4, test_per_class=2).draw()
    assert np.array_equal(again, samples.images)
    other = dataset("glyphs", train_per_class=4, test_per_class=2, render_seed=1).draw()
    assert not np.array_equal(other, samples.images)


def test_drawing_leaves_the_global_random_state_alone() -> None:
    def state() -> bytes:
        return bytes(np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002

    before = state()
    dataset("glyphs", train_per_class=1, test_per_class=1).draw()
    assert state() == before


def test_no_image_is_there_twice(samples: Samples) -> None:
    assert len({image.tobytes() for image in samples.images}) == len(samples.images)


def test_every_font_has_every_character(glyphs: ModuleType) -> None:
    for style in glyphs.STYLES:
        face = load_font(style.font)
        assert all(has_glyph(face, char) for char in glyphs.CHARACTERS), style.font
    with pytest.raises(ValueError, match=r"cmr10.ttf has no glyph for U\+10D0"):
        clean_masks("ა", "cmr10.ttf")


def test_the_shapes_in_the_repository_are_those_of_the_fonts(glyphs: ModuleType) -> None:
    """Versions of Pillow differ by a level of grey here and there, so other versions than those of the file come close."""
    difference = np.abs(glyphs.shapes() - glyphs.shapes_from_fonts()) * 255
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.001


def test_no_two_classes_look_the_same(glyphs: ModuleType) -> None:
    """In every style's clean masks, no two classes correlate by 0.95 or more."""
    for style, masks_of_style in zip(glyphs.STYLES, glyphs.shapes(), strict=True):
        masks = masks_of_style.reshape(100, -1)
        alike = np.corrcoef(masks)
        np.fill_diagonal(alike, 0)
        assert alike.max() < 0.95, (style.name, np.unravel_index(alike.argmax(), alike.shape))


@pytest.mark.slow
def test_pretraining_shares_no_character_font_or_look_with_the_benchmark(glyphs: ModuleType, chars: list[str]) -> None:
    assert not {s.font for s in glyph_classes.STYLES} & {s.font for s in glyphs.STYLES}
    assert not {s.name for s in glyph_classes.STYLES} & {s.name for s in glyphs.STYLES}
    assert not set(chars) & set(glyphs.CHARACTERS)
    vectors = [glyph_classes.blurred_vectors(part) for part in (chars, list(glyphs.CHARACTERS))]
    correlations = vectors[0] @ vectors[1].T
    assert correlations.max() < glyph_classes.MAX_CORRELATION
    scripts = {unicodedata.name(char).split()[0] for char in chars}
    assert not scripts & {"GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN"}


def test_drawn_images_are_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataset("glyphs", train_per_class=1, test_per_class=1)
    first = np.array(small.load(tmp_path).images)
    (path,) = tmp_path.rglob("*.npy")
    monkeypatch.setattr(type(small), "draw", lambda self: pytest.fail("drawn again"))
    again = small.load(tmp_path).images
    assert isinstance(again, np.memmap)
    assert np.array_equal(first, again)
    assert sorted(path.parent.iterdir()) == [path.parent / "contents.json", path], "nothing is left aside"


def test_options_have_folders_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        dataset("glyphs", train_per_class=1, test_per_class=1, render_seed=seed).load(tmp_path)
    assert len(list((tmp_path / "cache").glob("glyphs-*"))) == 2


@pytest.mark.parametrize("damage", ["half", "empty", "pickle", "other shape"])
def test_a_damaged_file_is_drawn_again(tmp_path: Path, damage: str) -> None:
    small = dataset("glyphs", train_per_class=1, test_per_class=1)
    first = np.array(small.load(tmp_path).images)
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    if damage == "half":
        os.truncate(path, len(content) // 2)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        np.save(path, np.array([object()]), allow_pickle=True)
    else:
        np.save(path, first[:5])
    assert np.array_equal(small.load(tmp_path).images, first)
    assert path.read_bytes() == content


def test_a_file_that_another_job_left_half_written_is_ignored(tmp_path: Path) -> None:
    small = dataset("glyphs", train_per_class=1, test_per_class=1)
    folder = tmp_path / "cache" / f"glyphs-{small.fingerprint()}"
    folder.mkdir(parents=True)
    (folder / "left.tmp").write_bytes(b"\x93NUMPY")
    assert small.load(tmp_path).images.shape == (1200, SIZE, SIZE, 3)


def test_rendering_depends_on_the_stream_alone(glyphs: ModuleType) -> None:
    style = glyphs.STYLES[0]
    masks, labels = clean_masks("ΓΩ", style.font), np.array([0, 1, 1])
    first, again, other = (render(masks, style, labels, stream("test", name)) for name in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", nano.NAMES)
def test_the_recipe_is_that_of_the_weights(name: str, chars: list[str]) -> None:
    recipe = json.loads(nano.recipe_path(name).read_text(encoding="utf-8"))
    content = nano.weights_path(name).read_bytes()
    assert recipe["sha256"] == hashlib.sha256(content).hexdigest()
    assert recipe["architecture"] == nano.ARCHITECTURE
    assert (tuple(recipe["mean"]), tuple(recipe["std"])) == (nano.MEAN, nano.STD)
    assert recipe["pretraining"]["classes"] == len(chars)
    assert len(content) <= 4_000_000


@pytest.mark.parametrize("name", nano.NAMES)
def test_the_file_holds_the_vit_alone_without_the_tokens_and_heads_of_its_pretraining(name: str) -> None:
    assert load_file(nano.weights_path(name)).keys() == VisionTransformer(**nano.ARCHITECTURE).state_dict().keys()


def test_nano_and_its_control_are_two_sets_of_weights_of_one_architecture() -> None:
    made = [backbone.make(name) for name in nano.NAMES]
    assert made[0].weights_hash() != made[1].weights_hash()
    assert [value.shape for value in made[0].parameters()] == [value.shape for value in made[1].parameters()]


@pytest.mark.parametrize("name", nano.NAMES)
def test_damaged_weights_are_refused(name: str, tmp_path: Path) -> None:
    for path in (nano.weights_path, nano.recipe_path):
        shutil.copy(path(name), path(name, tmp_path))
    content = bytearray(nano.weights_path(name).read_bytes())
    content[-1] ^= 1
    nano.weights_path(name, tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        nano.build(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("nano", 0.1), ("nano_plain", 0.25)])
def test_nano_tells_unseen_characters_apart(name: str, least: float, samples: Samples) -> None:
    """Nearest class mean over all six styles, 24 images per class: at least 10 and 25 times better than chance (1 %)."""
    model = nano.build(name)
    assert not model.training
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert 300_000 < sum(value.numel() for value in model.parameters()) < 2_000_000
    z = pretrain_nano.features(model, np.asarray(samples.images))
    means = np.stack([z[~samples.is_test & (samples.labels == label)].mean(0) for label in range(100)])
    truth = samples.labels[samples.is_test]
    distance = (means**2).sum(1) - 2 * z[samples.is_test] @ means.T
    assert (distance.argmin(1) == truth).mean() > least


def test_digits_are_complete_and_every_fifth_of_a_class_is_for_testing(tmp_path: Path) -> None:
    digits: Samples = dataset("digits").load(tmp_path)
    assert digits.images.shape == (1797, 32, 32, 3)
    assert digits.images.dtype == np.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    sizes = np.bincount(digits.labels)
    assert np.bincount(digits.labels[digits.is_test]).tolist() == (sizes // 5).tolist()
    assert not list(tmp_path.iterdir())
