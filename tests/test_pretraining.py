"""The pretraining of nano: what a question's tokens reach, what its loss is, and that both commands run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.pretraining import plain, pretrain_nano, questions, steer
from fedbench.pretraining.glyph_classes import STYLES, coarse_pictures, style_masks
from fedbench.pretraining.questions import NO_QUESTION, QuestionedVit
from fedbench.sources.glyph_renderer import Floats, stream
from fedbench.vit import nano
from fedbench.vit.backbone import Backbone

CHARS = ["A", "b", "ə", "7", "←"]  # of three blocks


@pytest.fixture(scope="module")
def masks() -> list[Floats]:
    return style_masks(CHARS)


@pytest.fixture(scope="module")
def model() -> QuestionedVit:
    return QuestionedVit(0, questions.number_of_answers(CHARS)).eval()


@pytest.fixture(scope="module")
def batch(masks: list[Floats]) -> questions.QuestionBatch:
    return questions.draw_batch(CHARS, masks, 12, len(STYLES), stream("test"))


@pytest.mark.parametrize("layers", [(0,), tuple(range(nano.ARCHITECTURE["depth"]))], ids=["shallow", "deep"])
def test_a_question_stands_where_the_prompts_of_the_suite_stand(
    model: QuestionedVit, batch: questions.QuestionBatch, layers: tuple[int, ...]
) -> None:
    backbone = Backbone(model.vit, nano.MEAN, nano.STD)
    question_ids = torch.full((12,), 2)

    def tokens(layer: int, cls: Tensor) -> dict[str, Tensor]:
        return {"prompt": model.tokens[2, layer].expand(len(cls), -1, -1)}

    with torch.no_grad():
        expected = backbone(batch.images, layers, tokens, slots_read=False)[0]["cls"]
        actual = model(batch.images, question_ids, 12 if len(layers) > 1 else 0)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_of_a_batch_the_first_images_alone_are_asked_at_every_block(
    model: QuestionedVit, batch: questions.QuestionBatch
) -> None:
    question_ids = torch.tensor([0, 1, 2, 3] * 3)
    with torch.no_grad():
        mixed, shallow, deep = (model(batch.images, question_ids, count) for count in (5, 0, 12))
    torch.testing.assert_close(mixed, torch.cat([deep[:5], shallow[5:]]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(shallow, deep)


def test_the_loss_is_the_mean_of_each_images_own_objective(
    model: QuestionedVit, batch: questions.QuestionBatch, masks: list[Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image by image, by hand; without tokens at every block, so that the order of images does not matter."""
    monkeypatch.setattr(questions, "EVERY_BLOCK_SHARE", 0.0)
    pictures, losses = coarse_pictures(masks[0]), []
    question_ids = batch.questions.clone()
    question_ids[:5] = torch.tensor([0, 1, 2, 3, NO_QUESTION])  # each at least once
    with torch.no_grad():
        for i, question in enumerate(question_ids.tolist()):
            image = batch.images[i : i + 1]
            if question == NO_QUESTION:
                small = image.reshape(1, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
                losses.append(questions.REDRAW_WEIGHT * ((model.redraw_image(model(image)) - small) ** 2).mean())
                continue
            name = list(questions.SHARES)[question]
            z, truth = model(image, torch.tensor([question])), batch.answers[name][i]
            log_p = F.log_softmax(model.classifiers[name](z), 1)[0]
            loss = -(0.9 * log_p[truth] + 0.1 * log_p.mean())
            losses.append(
                loss + ((model.redraw_character(z)[0] - pictures[truth]) ** 2).mean() if question == 0 else loss
            )
        actual = questions.question_loss(
            model, questions.QuestionBatch(batch.images, batch.answers, question_ids), pictures
        )
    assert float(actual) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_answers_are_those_of_the_drawn_image(masks: list[Floats]) -> None:
    drawn = questions.draw_batch(CHARS, masks, 60, len(STYLES), stream("answers"))
    assert {*drawn.answers["style"].tolist()} == {0, 1, 2}
    assert drawn.answers["block"].tolist() == [[0, 0, 1, 0, 7][label] for label in drawn.answers["character"].tolist()]
    for image, colour in zip(drawn.images, drawn.answers["colour"].tolist(), strict=True):
        mean = (image[:, 12:20, 12:20].double().mean((1, 2)) + 1) / 2 * 255 / 256 * 3
        assert colour == sum(
            int(level + 1e-6) * 3**place for level, place in zip(mean.tolist(), (2, 1, 0), strict=True)
        )


def test_questions_are_drawn_by_their_shares(masks: list[Floats]) -> None:
    drawn = questions.draw_batch(CHARS, masks, 1200, 1, stream("shares"))
    shares = np.bincount(drawn.questions, minlength=NO_QUESTION + 1) / 1200
    assert shares == pytest.approx([*questions.SHARES.values(), 1 - sum(questions.SHARES.values())], abs=0.06)


@pytest.mark.parametrize("name", nano.NAMES)
def test_the_command_trains_writes_and_measures_weights_that_build(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_nano, "assess", lambda model: {"parameters": len(model.state_dict())})
    for module in (questions, plain):
        monkeypatch.setattr(module, "characters", lambda: CHARS)
    monkeypatch.setattr(questions, "VALIDATION_IMAGES", 16)
    monkeypatch.setattr(questions, "NAMING_STEPS", 1)
    monkeypatch.setattr(plain, "VALIDATION_BATCHES", 1)
    options = ["--steps", "2", "--batch-size", "8", "--seed", "3"]
    torch_threads = torch.get_num_threads()
    for folder in (tmp_path / "a", tmp_path / "b"):
        pretrain_nano.main([name, "--folder", str(folder), "--threads", str(torch_threads), *options])
    recipe = json.loads(nano.recipe_path(name, tmp_path / "a").read_text())
    assert recipe["pretraining"]["images"] == 16
    assert recipe["measured"] == {"parameters": len(nano.build(name, tmp_path / "a").state_dict())}
    assert nano.weights_path(name, tmp_path / "a").read_bytes() == nano.weights_path(name, tmp_path / "b").read_bytes()


def test_the_rate_of_steering_is_chosen_without_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation prefers the second of three rates, test images the third."""
    pool = steer.Pool(
        (torch.zeros(1), torch.zeros(1)), (torch.zeros(2), torch.zeros(2)), (torch.zeros(3), torch.zeros(3)), 5
    )
    scores = {(0.1, 2): 0.3, (0.2, 2): 0.6, (0.3, 2): 0.5, (0.1, 3): 0.3, (0.2, 3): 0.4, (0.3, 3): 0.9}
    monkeypatch.setattr(steer, "tune", lambda backbone, pool, layers, lr, epochs, seed: (lr, None))
    monkeypatch.setattr(steer, "accuracy", lambda backbone, head, part, layers, prompts: scores[head, len(part[0])])
    best = steer.tune_at_best_rate(None, pool, "vpt_shallow", [0.1, 0.2, 0.3], 1, 0)  # type: ignore[arg-type]
    assert best == {"lr": 0.2, "validation_accuracy": 0.6, "test_accuracy": 0.4}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least", "most"), [("nano", 0.05, 1.0), ("nano_plain", -1.0, 0.05)])
def test_prompts_steer_nano_and_not_its_control(name: str, least: float, most: float) -> None:
    """Pooled, with few images and epochs: what VPT-shallow gains over a head alone, each at the better of two rates."""
    backbone = Backbone(nano.build(name), nano.MEAN, nano.STD)
    pool = steer.draw_pool(1500, 500, 1000, seed=1)
    head, shallow = (
        steer.tune_at_best_rate(backbone, pool, method, [0.03, 0.1], 6, seed=0) for method in ("head", "vpt_shallow")
    )
    assert least < shallow["test_accuracy"] - head["test_accuracy"] < most
