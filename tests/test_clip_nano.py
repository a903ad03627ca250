"""clip_nano: its tokenizer, what it learnt from, its loss, its weights, and what learned contexts add."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbench.data import Samples
from fedbench.plan.plugins import plugins
from fedbench.pretraining import (
    clip_characters,
    clip_images,
    clip_model,
    clip_prompts,
    clip_training,
    pretrain_clip_nano,
)
from fedbench.pretraining.clip_captions import Captions, CaptionWriter
from fedbench.pretraining.pretrain_clip_nano import benchmark_characters
from fedbench.sources.glyph_renderer import clean_masks
from fedbench.text import nano_tokenizer
from fedbench.text.class_texts import ClassTexts, text_side
from fedbench.text.nano_tokenizer import END, PADDING, START, WORDS, encode
from fedbench.vit import two_towers


def test_a_known_word_is_one_token_and_another_is_spelled_after_a_blank() -> None:
    assert encode(["Greek small-letter qux."], 10).tolist() == [
        [START, WORDS["greek"], WORDS["small"], WORDS["letter"], *b" qux", END, PADDING]
    ]


def test_a_text_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'letter letter' has 4 tokens, but clip_nano reads at most 3"):
        encode(["letter", "letter letter"], 3)


def test_the_classes_of_glyphs_have_different_tokens_that_leave_room_for_sixteen_contexts() -> None:
    extent = plugins().make("dataset", {"name": "glyphs"}).extent(Path())
    assert extent.samples is not None
    tokens = encode(extent.samples.class_names, clip_model.SIZES["context_length"] - 16)
    assert len(tokens.unique(dim=0)) == 100


def test_no_benchmark_character_font_or_equivalent_is_a_candidate() -> None:
    benchmark = benchmark_characters()
    assert len(benchmark) == 100
    chars = clip_characters.candidates(benchmark)
    assert not {unicodedata.normalize("NFKC", char).lower() for char in chars} & set(benchmark.lower())
    assert {"ά", "Ӂ", "ა"} & set(chars) == {"ά", "Ӂ"}  # alpha with tonos, zhe with breve; not the class an
    fonts = {Path(style.font).name for style in _glyph_styles()}
    assert len(fonts) == 6
    assert not fonts & {face.font for face in clip_characters.FACES}


def _glyph_styles() -> tuple[clip_images.Style, ...]:
    import sys

    module = sys.modules[type(plugins().make("dataset", {"name": "glyphs"})).__module__]
    return tuple(module.STYLES)


def test_a_character_that_looks_like_one_of_the_benchmark_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Cyrillic barred O looks like the Greek theta; the letter A does not."""
    monkeypatch.setattr(clip_characters, "FACES", clip_characters.FACES[:1])
    monkeypatch.setattr(clip_characters, "candidates", lambda benchmark: ["Ө", "A"])
    with ThreadPoolExecutor(1) as pool:
        alphabet = clip_characters.draw_alphabet("Θ", pool)
    assert (alphabet.chars, alphabet.masks.shape, alphabet.char.tolist()) == (("A",), (1, 64, 64), [0])


def test_a_caption_is_true_of_images_that_show_all_it_says() -> None:
    writer = CaptionWriter(["alpha", "beta"], torch.device("cpu"))
    looks = [look.words for look in clip_images.LOOKS]
    bold = next(i for i, words in enumerate(looks) if words[0] == "bold")
    thin = next(i for i, words in enumerate(looks) if words[0] == "regular" and words[1:] == looks[bold][1:])
    says_bold = writer.values[bold].clone()
    says_bold[1:] = -1
    nothing = torch.full((4,), -1)
    captions = Captions(torch.zeros(2, 1), torch.zeros(2), torch.stack([says_bold, nothing]))
    true = writer.truth(captions, torch.tensor([0, 0]), torch.tensor([0, 0, 1]), torch.tensor([bold, thin, bold]))
    assert true.tolist() == [[True, True], [False, True], [False, False]]


def test_a_caption_reads_as_the_words_that_its_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedbench.pretraining.clip_captions.SAID_SHARE", 1.0)
    monkeypatch.setattr("fedbench.pretraining.clip_captions.OPENING_SHARE", 0.0)
    writer = CaptionWriter(["greek letter", "letter"], torch.device("cpu"))
    captions = writer.write(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.Generator().manual_seed(0))
    weight, slope, ink, paper = clip_images.LOOKS[0].words
    for row, name, eot in zip(captions.tokens, ["greek letter", "letter"], captions.eot, strict=True):
        text = f"{weight} {slope} {ink} {name} on {paper}"
        assert row[: eot + 1].tolist() == encode([text], int(eot) + 1)[0].tolist()
        assert (row[eot + 1 :] == PADDING).all()


def test_the_loss_is_the_cross_entropy_both_ways_with_shared_targets() -> None:
    logits = np.array([[2.0, 0.5, 1.0], [0.0, 1.0, -1.0]])
    true = np.array([[1, 0, 1], [0, 1, 0]])
    rows, columns = (np.exp(logits) / np.exp(logits).sum(axis, keepdims=True) for axis in (1, 0))
    images = -(np.log(rows[0, [0, 2]]).mean() + np.log(rows[1, 1])) / 2
    texts = -(np.log(columns[0, 0]) + np.log(columns[1, 1]) + np.log(columns[0, 2])) / 3
    loss = clip_training.contrastive_loss(torch.tensor(logits), torch.tensor(true).bool())
    assert float(loss) == pytest.approx((images + texts) / 2, rel=1e-9)


def eight_characters() -> clip_characters.Alphabet:
    chars = "AEHKWX+="
    masks = np.rint(clean_masks(chars, clip_characters.FACES[0].font) * 255).astype(np.uint8)
    return clip_characters.Alphabet(tuple(chars), masks, np.arange(8), np.zeros(8, dtype=np.int64))


def test_a_few_steps_of_pretraining_lower_the_contrastive_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    alphabet = eight_characters()
    with ThreadPoolExecutor(1) as pool:
        drawings = clip_images.draw_all(alphabet, 1, 0, pool)
    assert len(drawings.images) == 8 * len(clip_images.PALETTES)  # only looks of the first face can draw them
    recipe = clip_training.ClipRecipe(steps=8, batch_size=24, lr=1e-3)
    training = clip_training.ClipTraining(recipe, clip_training.new_model(recipe), alphabet, drawings, "cpu")
    losses = []
    loss_of = training.loss
    monkeypatch.setattr(training, "loss", lambda: losses.append(loss_of()) or losses[-1])
    assert training.run()["steps"] == 8
    first, last = (float(sum(contrast.detach() for _, contrast in part)) / 2 for part in (losses[:2], losses[-2:]))
    assert last < first - 0.2


@pytest.fixture(scope="module")
def model() -> clip_model.ClipNano:
    return clip_model.load()


@pytest.fixture(scope="module")
def greek(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Four training images and two test images of the Greek classes of glyphs in every style."""
    small = plugins().make("dataset", {"name": "glyphs", "train_per_class": 4, "test_per_class": 2})
    samples = small.load(tmp_path_factory.mktemp("glyphs"))
    kept = samples.labels < 20
    columns = {name: getattr(samples, name)[kept] for name in ("images", "labels", "is_test", "domain")}
    return replace(samples, **columns, class_names=samples.class_names[:20])


@pytest.fixture(scope="module")
def task(model: clip_model.ClipNano, greek: Samples) -> clip_prompts.Task:
    return clip_prompts.Task.of(model, greek)


@pytest.mark.slow
def test_the_command_writes_weights_and_the_file_that_describes_them(
    greek: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_clip_nano, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    monkeypatch.setattr(clip_prompts, "glyphs", lambda: greek)
    (tmp_path / "drawn").mkdir()
    eight_characters().save(tmp_path / "drawn" / "alphabet.npz")
    folders = ["--drawn", str(tmp_path / "drawn"), "--folder", str(tmp_path / "made")]
    pretrain_clip_nano.main([*folders, "--each", "1", "--workers", "1", "--steps", "2", "--batch-size", "8"])
    recipe = json.loads((tmp_path / "made" / clip_model.RECIPE).read_text())
    assert recipe["pretraining"]["steps"] == 2
    assert recipe["pretraining"]["images"] == 8 * len(clip_images.PALETTES)
    written = clip_model.load(tmp_path / "made")
    measured = clip_prompts.zero_shot(written, clip_prompts.Task.of(written, greek))
    assert recipe["measured"]["glyphs"]["zero_shot"] == measured


def test_the_weights_are_those_of_their_file_and_take_less_than_four_megabytes() -> None:
    content = (clip_model.FOLDER / clip_model.WEIGHTS).read_bytes()
    recipe = json.loads((clip_model.FOLDER / clip_model.RECIPE).read_text())
    assert hashlib.sha256(content).hexdigest() == recipe["sha256"]
    assert len(content) < 4_000_000
    assert recipe["vocab_size"] == nano_tokenizer.VOCAB_SIZE


def test_clip_nano_names_characters_it_never_saw_and_contexts_add_to_that(
    model: clip_model.ClipNano, task: clip_prompts.Task
) -> None:
    """Among 20 classes, chance is 5 %."""
    zero_shot = clip_prompts.zero_shot(model, task)["accuracy"]
    assert zero_shot > 0.1
    contexts = clip_prompts.coop(model, task, length=4, lr=0.003, steps=60, batch=64, seed=0)
    classes = clip_prompts.text_features(model, task.texts, contexts)
    assert task.accuracy(classes, task.test) > zero_shot + 0.1


def test_the_suite_reads_the_towers_as_they_were_trained(model: clip_model.ClipNano, task: clip_prompts.Task) -> None:
    side = text_side("clip_nano", None, None, torch.device("cpu"), torch.float32)
    names = task.texts[:5]
    torch.testing.assert_close(ClassTexts.of(side, names).template, clip_prompts.text_features(model, names))
    state = two_towers.tensors("clip_nano")
    image_tower = two_towers.image_tower(two_towers.sizes("clip_nano").vision)
    two_towers.load(image_tower, two_towers.part(state, "visual."), "clip_nano")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(image_tower.eval()(images) @ side.projection, dim=1)
    torch.testing.assert_close(features, model.encode_images(images)[1])
    assert float(side.scale) == pytest.approx(float(model.scale()))
