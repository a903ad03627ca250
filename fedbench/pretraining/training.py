"""The training loop that nano and nano_plain have in common: the recipe, the initial weights and the optimiser."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.pretraining.glyph_classes import COARSE, STYLES
from fedbench.vit.nano import ARCHITECTURE

logger = logging.getLogger(__name__)

WIDTH, DEPTH = ARCHITECTURE["embed_dim"], ARCHITECTURE["depth"]
BETAS, WARM_UP, LABEL_SMOOTHING, MAX_GRADIENT_NORM = (0.9, 0.98), 100, 0.1, 1.0


@dataclass(frozen=True)
class Recipe:
    """The numbers of a pretraining, all of them options of the command."""

    seed: int
    steps: int
    batch_size: int
    lr: float = 3e-3
    weight_decay: float = 0.05

    @property
    def easy_steps(self) -> int:
        """The first steps, which show one style alone: it shortens the time before anything is learnt."""
        return self.steps // 8

    def styles(self, step: int) -> int:
        """How many styles the images of a step (1 is the first) have."""
        return len(STYLES) if step > self.easy_steps else 1

    def described(self) -> dict[str, Any]:
        """What the file of provenance says about the recipe."""
        return {
            "styles": [style.name for style in STYLES],
            "images": self.steps * self.batch_size,
            "steps": self.steps,
            "steps_with_one_style": self.easy_steps,
            "batch_size": self.batch_size,
            "optimizer": {
                "name": "AdamW",
                "lr": self.lr,
                "weight_decay": self.weight_decay,
                "betas": BETAS,
                "schedule": f"{WARM_UP} steps of warm-up, cosine",
                "max_gradient_norm": MAX_GRADIENT_NORM,
            },
            "label_smoothing": LABEL_SMOOTHING,
            "seed": self.seed,
        }


def initial_weights(seed: int, classes: int) -> tuple[VisionTransformer, nn.Linear, nn.Linear]:
    """The untrained model, the head that names the character and the head that redraws it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, name, redraw = VisionTransformer(**ARCHITECTURE), nn.Linear(WIDTH, classes), nn.Linear(WIDTH, COARSE**2)
        # timm's initial weights suit wide models; here they leave attention and positions close to nothing.
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        parameters = dict(model.named_parameters())
        for token in ("pos_embed", "cls_token"):
            nn.init.normal_(parameters[token], std=0.3)
    return model, name, redraw


def minimise(parameters: list[nn.Parameter], losses: Iterable[Tensor], recipe: Recipe) -> int:
    """Take one step of AdamW for each loss. Return the seconds that it took."""
    groups = [{"params": [p for p in parameters if (p.ndim > 1) == decays]} for decays in (True, False)]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
    )
    started = time.monotonic()
    for step, loss in enumerate(losses, 1):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.monotonic() - started
            logger.info("step %d of %d  loss %.3f  %.0f s", step, recipe.steps, loss.item(), seconds)
    return round(time.monotonic() - started)
