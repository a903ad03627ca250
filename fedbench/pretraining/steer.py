"""How far prompts steer an embedded backbone, without clients or rounds: `python -m fedbench.pretraining.steer`.

A linear head alone, VPT-shallow and VPT-deep (Jia et al. 2022, each with a head) are trained on pooled training images of
glyphs. The learning rate of each is the one with the best accuracy on other training images; only then is it tested.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbench.data import Samples
from fedbench.plan.plugins import plugins
from fedbench.pretraining.glyph_classes import to_input
from fedbench.pretraining.training import DEPTH, WIDTH
from fedbench.vit import nano
from fedbench.vit.backbone import Backbone

logger = logging.getLogger(__name__)

LAYERS: dict[str, tuple[int, ...]] = {"head": (), "vpt_shallow": (0,), "vpt_deep": tuple(range(DEPTH))}
LRS = (0.003, 0.01, 0.03, 0.1, 0.3)
PROMPT_LENGTH, BATCH_SIZE, MOMENTUM = 8, 64, 0.9
BOUND = math.sqrt(6 / (3 * nano.ARCHITECTURE["patch_size"] ** 2 + WIDTH))  # VPT's initial prompts are U(-BOUND, BOUND)

Part = tuple[Tensor, Tensor]  # images [N, 3, H, W] and labels [N]


@dataclass(frozen=True)
class Pool:
    """Images of glyphs from all styles: to train on, to choose the learning rate with, and to test on."""

    train: Part
    validation: Part
    test: Part
    classes: int


def draw_pool(train: int, validation: int, test: int, seed: int) -> Pool:
    """A pool of these sizes, without replacement; the first two parts are training images of the dataset."""
    with tempfile.TemporaryDirectory() as folder:
        glyphs: Samples = plugins().make("dataset", {"name": "glyphs"}).load(Path(folder))
        draw = np.random.default_rng(seed)
        for_training = draw.permutation(np.flatnonzero(~glyphs.is_test))
        for_testing = draw.permutation(np.flatnonzero(glyphs.is_test))
        parts = [*np.split(for_training[: train + validation], [train]), for_testing[:test]]
        train_part, validation_part, test_part = (
            (to_input(np.asarray(glyphs.images[part])), torch.from_numpy(glyphs.labels[part])) for part in parts
        )
        return Pool(train_part, validation_part, test_part, glyphs.num_classes)


def cls_tokens(backbone: Backbone, images: Tensor, layers: tuple[int, ...], prompts: Tensor) -> Tensor:
    """The CLS token after the last norm [N, D], with the prompts [len(layers), P, D]."""

    def prompts_at(layer: int, entering: Tensor) -> dict[str, Tensor]:
        return {"prompt": prompts[layers.index(layer)].expand(len(entering), -1, -1)}

    cls: Tensor = backbone(images, layers, prompts_at, slots_read=False)[0]["cls"]
    return cls


def accuracy(backbone: Backbone, head: nn.Linear, part: Part, layers: tuple[int, ...], prompts: Tensor) -> float:
    """The share of images that the head names correctly."""
    with torch.no_grad():
        logits = [head(cls_tokens(backbone, images, layers, prompts)) for images in part[0].split(256)]
    return float((torch.cat(logits).argmax(1) == part[1]).float().mean())


def tune(
    backbone: Backbone, pool: Pool, layers: tuple[int, ...], lr: float, epochs: int, seed: int
) -> tuple[nn.Linear, Tensor]:
    """A head and prompts [len(layers), P, D] after SGD with a cosine schedule; whole batches only."""
    torch.manual_seed(seed)
    images, labels = pool.train
    head = nn.Linear(WIDTH, pool.classes)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    prompts = nn.Parameter((torch.rand(len(layers), PROMPT_LENGTH, WIDTH) * 2 - 1) * BOUND)
    optimizer = torch.optim.SGD([*head.parameters(), prompts], lr=lr, momentum=MOMENTUM)
    batches = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    if not layers:  # the features never change
        with torch.no_grad():
            features = torch.cat([cls_tokens(backbone, part, layers, prompts) for part in images.split(256)])
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(BATCH_SIZE)[:batches]:
            z = cls_tokens(backbone, images[part], layers, prompts) if layers else features[part]
            loss = F.cross_entropy(head(z), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head, prompts.detach()


def tune_at_best_rate(
    backbone: Backbone, pool: Pool, method: str, lrs: Sequence[float], epochs: int, seed: int
) -> dict[str, float]:
    """Tune by `method`, a key of LAYERS, with every rate. Return the best rate by validation, and its accuracies."""
    validated: dict[float, float] = {}
    tuned: dict[float, tuple[nn.Linear, Tensor]] = {}
    for lr in lrs:
        started = time.monotonic()
        tuned[lr] = tune(backbone, pool, LAYERS[method], lr, epochs, seed)
        head, prompts = tuned[lr]
        validated[lr] = accuracy(backbone, head, pool.validation, LAYERS[method], prompts)
        logger.info("%s  lr %g  validation %.4f  %.0f s", method, lr, validated[lr], time.monotonic() - started)
    lr = max(validated, key=validated.__getitem__)
    head, prompts = tuned[lr]
    tested = accuracy(backbone, head, pool.test, LAYERS[method], prompts)
    return {"lr": lr, "validation_accuracy": round(validated[lr], 4), "test_accuracy": round(tested, 4)}


def record(recipe: Path, figures: dict[str, Any]) -> None:
    """Write the figures under ``measured: glyphs_tuned`` of a file of provenance."""
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content["measured"]["glyphs_tuned"] = figures
    recipe.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print what a head, VPT-shallow and VPT-deep reach on each backbone, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.pretraining.steer", description=main.__doc__)
    parser.add_argument("names", nargs="*", default=nano.NAMES, help="backbones (default: all embedded ones)")
    parser.add_argument("--folder", type=Path, default=nano.FOLDER, help="where their weights are")
    parser.add_argument("--methods", nargs="+", choices=LAYERS, default=list(LAYERS), help="what is tuned")
    parser.add_argument("--lrs", nargs="+", type=float, default=LRS, help="learning rates to choose from")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--train", type=int, default=3000, help="training images")
    parser.add_argument("--validation", type=int, default=1000, help="other training images, to choose the rate with")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="also write the figures into the files of provenance")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    pool = draw_pool(options.train, options.validation, options.test, options.seed)
    figures: dict[str, Any] = {}
    for name in options.names:
        backbone = Backbone(nano.build(name, options.folder), nano.MEAN, nano.STD)
        figures[name] = {
            method: tune_at_best_rate(backbone, pool, method, options.lrs, options.epochs, options.seed)
            for method in options.methods
        }
        if options.record:
            sizes = {part: getattr(options, part) for part in ("train", "validation", "test", "epochs")}
            record(nano.recipe_path(name, options.folder), {**sizes, **figures[name]})
    logger.info("%s", json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
