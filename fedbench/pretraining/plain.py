"""Pretraining without questions: the weights of nano_plain, the negative control of nano."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedbench.pretraining.glyph_classes import (
    COARSE,
    STYLES,
    characters,
    coarse_pictures,
    draw_images,
    style_masks,
    to_input,
)
from fedbench.pretraining.training import LABEL_SMOOTHING, Recipe, initial_weights, minimise
from fedbench.sources.glyph_renderer import stream

VALIDATION_BATCHES = 20  # of 256 fresh images, on which the named characters are counted in the end


def train_plain(recipe: Recipe) -> tuple[VisionTransformer, dict[str, Any]]:
    """Train from scratch to name and redraw characters. Return the ViT and what the file of provenance says about it."""
    chars = characters()
    masks = style_masks(chars)
    pictures = coarse_pictures(masks[0])
    model, head, redraw = initial_weights(recipe.seed, len(chars))
    draw = stream("pretrain", recipe.seed)

    def losses() -> Iterator[Tensor]:
        for step in range(1, recipe.steps + 1):
            images, classes, _ = draw_images(masks, recipe.batch_size, recipe.styles(step), draw)
            z, labels = model(to_input(images)), torch.from_numpy(classes)
            # A picture to redraw beside a character to name shortens the time before anything is learnt.
            named = F.cross_entropy(head(z), labels, label_smoothing=LABEL_SMOOTHING)
            yield named + F.mse_loss(redraw(z), pictures[labels])

    model.train()
    seconds = minimise([*model.parameters(), *head.parameters(), *redraw.parameters()], losses(), recipe)
    model.eval()
    draw = stream("validate", recipe.seed)
    hits = []
    for _ in range(VALIDATION_BATCHES):
        images, classes, _ = draw_images(masks, 256, len(STYLES), draw)
        with torch.no_grad():
            hits.append((head(model(to_input(images))).argmax(1).numpy() == classes).mean())
    return model, {
        "classes": len(chars),
        **recipe.described(),
        "also": f"mean squared error of a redrawn {COARSE} x {COARSE} picture",
        "seconds": seconds,
        "pretraining_accuracy": round(float(sum(hits) / len(hits)), 4),
    }
