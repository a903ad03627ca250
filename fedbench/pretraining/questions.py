"""Pretraining with questions: tokens in the place of prompts ask for one of several things that an image shows.

A large ViT has learnt many things at once, and a prompt can change which of them its CLS token tells. A miniature that
learns to name characters alone has nothing to change. Here it learns four questions about the same image, each asked by
learned tokens that stand where prompts stand, between CLS and the patches: which character, which block of Unicode, which
style, which colour in the middle. Each question has a classifier of its own. A share of the images comes without a
question; from their CLS token the image itself is redrawn. Then follows a short second phase, with new heads, in which some
images without a question name their character too: before it, the prompt-free CLS token says little about the character. The
tokens and the heads are thrown away in the end.

No objective looks at class prototypes, mixes class prompts or uses anything else of a method that fedbench compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.pretraining.glyph_classes import (
    BLOCKS,
    COARSE,
    STYLES,
    blocks_of,
    characters,
    coarse_pictures,
    draw_images,
    style_masks,
    to_input,
)
from fedbench.pretraining.training import DEPTH, LABEL_SMOOTHING, WIDTH, Recipe, initial_weights, minimise
from fedbench.sources.glyph_renderer import Floats, stream
from fedbench.vit.block_forward import leading

SHARES = {"character": 0.5, "block": 0.1, "style": 0.1, "colour": 0.1}  # of the images; the rest has no question
NO_QUESTION = len(SHARES)
EVERY_BLOCK_SHARE = 0.25  # of the images with a question: fresh tokens at every block, as VPT-deep has them
TOKENS, TOKEN_STD = 4, 0.3  # tokens of a question, and their standard deviation at the start
LEVELS = 3  # of red, green and blue in the answer to the question of colour
MIDDLE = slice(12, 20)  # rows and columns of the image that the question of colour is about
NAMING_STEPS, NAMING_SCHEDULE, NAMING_LR = 600, 1400, 1.5e-3  # the second phase ends before its cosine does
NAMING_SHARE = 0.3  # of the images without a question that name their character in the second phase
VALIDATION_IMAGES = 2048  # fresh ones, on which the answers are counted in the end
THUMBNAIL = 16  # pixels per side of the picture that is redrawn where nothing is asked
REDRAW_WEIGHT = 10.0  # of its squared error, which is small beside a cross-entropy


def number_of_answers(chars: list[str]) -> dict[str, int]:
    """How many classes the answers to each question have."""
    return {"character": len(chars), "block": len(BLOCKS), "style": len(STYLES), "colour": LEVELS**3}


def middle_colours(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class of the mean colour in the middle of each image [N, H, W, 3] -> [N]."""
    levels = (images[:, MIDDLE, MIDDLE].mean((1, 2)) / 256 * LEVELS).astype(np.int64)
    return np.asarray(levels @ np.array([LEVELS**2, LEVELS, 1]))


class QuestionedVit(nn.Module):
    """nano while it learns: the ViT, the tokens that ask [Q, L, P, D], and the heads that read its CLS token."""

    def __init__(self, seed: int, answers: dict[str, int]) -> None:
        super().__init__()
        self.vit, name, self.redraw_character = initial_weights(seed, answers["character"])
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            others = {question: nn.Linear(WIDTH, count) for question, count in list(answers.items())[1:]}
            self.classifiers = nn.ModuleDict({"character": name, **others})
            self.redraw_image = nn.Linear(WIDTH, 3 * THUMBNAIL**2)
            self.tokens = nn.Parameter(torch.randn(len(answers), DEPTH, TOKENS, WIDTH) * TOKEN_STD)

    def forward(self, images: Tensor, questions: Tensor | None = None, at_every_block: int = 0) -> Tensor:
        """The CLS token after the last norm, [N, 3, H, W] -> [N, D].

        `questions` [N] are asked before the first block, and of the first `at_every_block` images anew before each block.
        """
        vit, deep = self.vit, at_every_block
        x: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        for layer, block in enumerate(vit.blocks):
            if questions is not None and layer == 0:
                x = torch.cat([x[:, :1], self.tokens[questions, 0], x[:, 1:]], dim=1)
            elif questions is not None and deep:
                cls, slots, patches = x.split([1, TOKENS, x.shape[1] - 1 - TOKENS], dim=1)
                slots = torch.cat([self.tokens[questions[:deep], layer], slots[deep:]])
                x = torch.cat([cls, slots, patches], dim=1)
            x = leading(block, x, 1) if layer == DEPTH - 1 else block(x)
        cls_token: Tensor = vit.norm(x)[:, 0]
        return cls_token


@dataclass(frozen=True)
class QuestionBatch:
    """Images [N, 3, H, W], the answer to every question [N], and which question each is asked [N], NO_QUESTION for none."""

    images: Tensor
    answers: dict[str, Tensor]
    questions: Tensor


Loss = Callable[[QuestionedVit, QuestionBatch, Tensor], Tensor]


def draw_batch(
    chars: list[str], masks: list[Floats], size: int, styles: int, draw: np.random.Generator
) -> QuestionBatch:
    """`size` fresh images of the first `styles` styles, each with a question drawn by SHARES."""
    images, labels, style = draw_images(masks, size, styles, draw)
    blocks, shares = blocks_of(chars)[labels], [*SHARES.values(), 1 - sum(SHARES.values())]
    questions = draw.choice(len(shares), size, p=shares)
    order = draw.permutation(size)  # drawn images are sorted by style
    answers = {"character": labels, "block": blocks, "style": style, "colour": middle_colours(images)}
    return QuestionBatch(
        to_input(images[order]),
        {question: torch.from_numpy(answer[order]) for question, answer in answers.items()},
        torch.from_numpy(questions),
    )


def question_loss(model: QuestionedVit, batch: QuestionBatch, pictures: Tensor) -> Tensor:
    """The mean over the batch of each image's loss.

    With a question: the cross-entropy of its answer; with that of the character also the squared error of its redrawn clean
    picture (`pictures` [C, 256]), since the character is learnt sooner with it. Without one: REDRAW_WEIGHT times
    the squared error of the redrawn image.
    """
    has_question, without = ((batch.questions < NO_QUESTION) == which for which in (True, False))
    questions, images = batch.questions[has_question], batch.images[without]
    total = torch.zeros(())
    if len(questions):
        z = model(batch.images[has_question], questions, round(len(questions) * EVERY_BLOCK_SHARE))
        for index, (question, classifier) in enumerate(model.classifiers.items()):
            if len(part := z[questions == index]):
                truth = batch.answers[question][has_question][questions == index]
                loss = F.cross_entropy(classifier(part), truth, label_smoothing=LABEL_SMOOTHING)
                if question == "character":
                    loss = loss + F.mse_loss(model.redraw_character(part), pictures[truth])
                total = total + loss * len(part)
    if len(images):
        thumbnails = F.avg_pool2d(images, images.shape[-1] // THUMBNAIL).flatten(1)
        total = total + REDRAW_WEIGHT * F.mse_loss(model.redraw_image(model(images)), thumbnails) * len(images)
    return total / len(batch.questions)


def naming_loss(model: QuestionedVit, batch: QuestionBatch, pictures: Tensor) -> Tensor:
    """`question_loss`, plus that of the character for NAMING_SHARE of the images without a question."""
    rest = torch.nonzero(batch.questions == NO_QUESTION)[:, 0]
    named = rest[: max(1, round(NAMING_SHARE * len(rest)))]
    loss = question_loss(model, batch, pictures)
    if not len(named):
        return loss
    z, truth = model(batch.images[named]), batch.answers["character"][named]
    cross_entropy = F.cross_entropy(model.classifiers["character"](z), truth, label_smoothing=LABEL_SMOOTHING)
    redrawn = F.mse_loss(model.redraw_character(z), pictures[truth])
    return loss + (cross_entropy + redrawn) * len(named) / len(batch.questions)


def accuracies(model: QuestionedVit, batch: QuestionBatch) -> dict[str, dict[str, float]]:
    """The share of right answers to each question on all images, asked at the first block alone and at every block."""
    right: dict[str, dict[str, float]] = {}
    for index, (question, classifier) in enumerate(model.classifiers.items()):
        right[question] = {}
        for place, at_every_block in (("first_block", False), ("every_block", True)):
            with torch.no_grad():
                guesses = [
                    classifier(model(part, torch.full((len(part),), index), at_every_block * len(part))).argmax(1)
                    for part in batch.images.split(256)
                ]
            correct = torch.cat(guesses) == batch.answers[question]
            right[question][place] = round(float(correct.float().mean()), 4)
    return right


def train_with_questions(recipe: Recipe) -> tuple[VisionTransformer, dict[str, Any]]:
    """Train from scratch. Return the ViT, without tokens and heads, and what the file of provenance says about it."""
    chars = characters()
    masks, answers = style_masks(chars), number_of_answers(chars)
    model, pictures = QuestionedVit(recipe.seed, answers), coarse_pictures(masks[0])

    def losses(model: QuestionedVit, loss: Loss, styles: Iterable[int], stream_name: str) -> Iterator[Tensor]:
        draw = stream(stream_name, recipe.seed)
        for count in styles:
            yield loss(model, draw_batch(chars, masks, recipe.batch_size, count, draw), pictures)

    model.train()
    styles = map(recipe.styles, range(1, recipe.steps + 1))
    seconds = minimise(list(model.parameters()), losses(model, question_loss, styles, "questions"), recipe)
    model.eval()
    fresh = draw_batch(chars, masks, VALIDATION_IMAGES, len(STYLES), stream("validate questions", recipe.seed))
    right = accuracies(model, fresh)

    named = QuestionedVit(recipe.seed, answers).train()
    named.vit.load_state_dict(model.vit.state_dict())
    named.tokens.data.copy_(model.tokens.data)
    phase = replace(recipe, steps=NAMING_SCHEDULE, lr=NAMING_LR)
    all_styles = [len(STYLES)] * NAMING_STEPS
    seconds += minimise(list(named.parameters()), losses(named, naming_loss, all_styles, "continued"), phase)
    return named.vit.eval(), {
        "classes": len(chars),
        **recipe.described(),
        **described_questions(answers),
        "seconds": seconds,
        "accuracy_before_the_second_phase": right,
    }


def described_questions(answers: dict[str, int]) -> dict[str, Any]:
    """What the file of provenance says about the questions and the second phase."""
    return {
        "questions": {name: {"answers": count, "share": SHARES[name]} for name, count in answers.items()},
        "share_without_question": round(1 - sum(SHARES.values()), 4),
        "share_of_questions_asked_at_every_block": EVERY_BLOCK_SHARE,
        "tokens_of_a_question": TOKENS,
        "weight_of_the_redrawn_image": REDRAW_WEIGHT,
        "also": f"mean squared error of a redrawn {COARSE} x {COARSE} picture where the character is asked for, and of the"
        f" image in {THUMBNAIL} x {THUMBNAIL} pixels where nothing is asked",
        "second_phase": {
            "steps": NAMING_STEPS,
            "lr": NAMING_LR,
            "steps_of_the_cosine": NAMING_SCHEDULE,
            "share_of_images_without_question_that_name_their_character": NAMING_SHARE,
        },
    }
