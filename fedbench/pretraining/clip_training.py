"""The contrastive pretraining of clip_nano (Radford et al., ICML 2021), in which a caption may be true of several images."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbench.pretraining.clip_captions import CaptionWriter
from fedbench.pretraining.clip_characters import Alphabet
from fedbench.pretraining.clip_images import Drawings, clean_pictures
from fedbench.pretraining.clip_model import SMALLEST_TEMPERATURE, ClipNano, untrained
from fedbench.pretraining.glyph_classes import COARSE
from fedbench.pretraining.training import BETAS, MAX_GRADIENT_NORM, WIDTH, initial_weights
from fedbench.vit import nano
from fedbench.vit.nano import MEAN, STD

logger = logging.getLogger(__name__)

SCRIPTS = ("greek", "cyrillic", "armenian", "georgian")
CLOCK_STEPS, LOG_STEPS = 20, 250  # how often the clock is read, and the loss is noted


@dataclass(frozen=True)
class ClipRecipe:
    """The numbers of a pretraining. It ends after `steps` steps or `seconds` seconds, whichever come first."""

    seed: int = 0
    start: str = "nano"  # the image tower's weights at the start: those of nano, or "random"
    steps: int = 6000
    seconds: float = 150.0
    batch_size: int = 4096
    lr: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.03  # share of the training
    redraw_weight: float = 1.0
    script_share: float = 0.0  # of each batch: more characters of the benchmark's scripts than there would be by chance


def new_model(recipe: ClipRecipe) -> ClipNano:
    """The towers before training."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = untrained()
        start = nano.build("nano") if recipe.start == "nano" else initial_weights(recipe.seed, 1)[0]
        model.visual.load_state_dict(start.state_dict())
        return model


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy from images to captions and back, halved; the target is shared equally by all that are true.

    `logits` and `true` are [N, T]. Every image and caption needs a true partner.
    """

    def one_way(scores: Tensor, target: Tensor) -> Tensor:
        return -(F.log_softmax(scores, dim=1) * (target / target.sum(1, keepdim=True))).sum(1).mean()

    target = true.to(logits.dtype)
    return (one_way(logits, target) + one_way(logits.T, target.T)) / 2


def augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """uint8 [N, H, W, 3] as the model reads it, [N, 3, H, W], with random contrast, brightness and noise."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    x = images.permute(0, 3, 1, 2).float() / 255

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=draw, device=x.device)

    x = (x - 0.5) * uniform(0.7, 1.2) + 0.5 + uniform(-0.1, 0.1)
    x = x + uniform(0.0, 0.08) * torch.randn(x.shape, generator=draw, device=x.device)
    return (x.clamp(0, 1) - mean) / std


class ClipTraining:
    """A model, its optimiser and the drawn images on one device."""

    def __init__(
        self, recipe: ClipRecipe, model: ClipNano, alphabet: Alphabet, drawings: Drawings, device: str
    ) -> None:
        self.recipe, self.model, self.device = recipe, model.to(device), torch.device(device)
        self.images = torch.from_numpy(drawings.images).to(device)
        self.char, self.look = (torch.from_numpy(part).to(device) for part in (drawings.char, drawings.look))
        self.pictures = torch.from_numpy(clean_pictures(alphabet, COARSE)).to(device)
        self.captions = CaptionWriter(alphabet.names, self.device)
        if self.captions.longest > model.text.context_length:
            raise ValueError(f"captions of {self.captions.longest} tokens do not fit {model.text.context_length}")
        self.redraw = nn.Linear(WIDTH, COARSE**2).to(device)
        self.draw = torch.Generator(device).manual_seed(recipe.seed)
        everything = torch.arange(len(self.images), device=self.device)
        named = torch.tensor([script in SCRIPTS for script in alphabet.scripts], device=self.device)[self.char]
        some = round(recipe.batch_size * recipe.script_share)
        self.shares = [(everything, recipe.batch_size - some)] + [(everything[named], some)] * bool(some)
        self.parameters = [*model.parameters(), *self.redraw.parameters()]
        decayed = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=BETAS,
            weight_decay=recipe.weight_decay,
            fused=device != "cpu",
        )

    def pick(self, pool: Tensor, size: int) -> Tensor:
        """`size` random elements of `pool` [M]."""
        return pool[torch.randint(len(pool), (size,), generator=self.draw, device=self.device)]

    def loss(self) -> tuple[Tensor, Tensor]:
        """The loss of a fresh batch, and its contrastive part."""
        picked = torch.cat([self.pick(part, size) for part, size in self.shares])
        char, look = self.char[picked], self.look[picked]
        captions = self.captions.write(char, look, self.draw)
        cls_token, image_features = self.model.encode_images(augmented(self.images[picked], self.draw))
        text_features = self.model.encode_texts(captions.tokens, captions.eot)
        true = self.captions.truth(captions, char, char, look)
        contrast = contrastive_loss(self.model.scale() * image_features @ text_features.T, true)
        # A picture to redraw beside a character to name shortens the time before anything is learnt, as in nano.
        redrawn = F.mse_loss(self.redraw(cls_token), self.pictures[char])
        return contrast + self.recipe.redraw_weight * redrawn, contrast

    def progress(self) -> Iterator[float]:
        """The share of the training that is over before each step: of the steps or of the seconds, whichever is larger."""
        started, clock = time.monotonic(), 0.0
        for step in range(self.recipe.steps):
            if step % CLOCK_STEPS == 0:
                clock = (time.monotonic() - started) / self.recipe.seconds
            if clock >= 1:
                return
            yield max(step / self.recipe.steps, clock)

    def run(self) -> dict[str, Any]:
        """Train with a warm-up and a cosine. Return the number of steps and seconds, and a log of losses."""
        log: list[dict[str, float]] = []
        step, started = 0, time.monotonic()
        self.model.train()
        for step, progress in enumerate(self.progress(), 1):
            warm = min(1.0, (progress + 1 / self.recipe.steps) / self.recipe.warm_up)
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))
            loss, contrast = self.loss()
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            self.optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=-math.log(SMALLEST_TEMPERATURE))
            if step % LOG_STEPS == 0 or step == 1:
                seconds = round(time.monotonic() - started, 1)
                log.append({"step": step, "seconds": seconds, "loss": round(contrast.item(), 4)})
                logger.info("%s", log[-1])
        self.model.eval()
        return {"steps": step, "seconds": round(time.monotonic() - started), "log": log}
