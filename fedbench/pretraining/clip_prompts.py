"""Accuracy of clip_nano on glyphs, zero-shot and with learned contexts: `python -m fedbench.pretraining.clip_prompts`.

The contexts are those of CoOp (Zhou et al., IJCV 2022): a few vectors before every class name, learnt by cross-entropy from
pooled training images. Both towers stay frozen.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
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
from fedbench.pretraining.clip_model import FOLDER, ClipNano, load
from fedbench.pretraining.glyph_classes import to_input
from fedbench.text.nano_tokenizer import END, encode

logger = logging.getLogger(__name__)

CONTEXT_STD = 0.02  # of the initial context vectors, as in CoOp
MOMENTUM = 0.9
VALIDATION_SHARE = 0.25  # of the training images


def glyphs() -> Samples:
    """The glyphs dataset with its default options."""
    with tempfile.TemporaryDirectory() as folder:
        samples: Samples = plugins().make("dataset", {"name": "glyphs"}).load(Path(folder))
        return samples


def image_features(model: ClipNano, samples: Samples) -> Tensor:
    """The unit features of all images [N, E]."""
    with torch.no_grad():
        parts = [
            model.encode_images(to_input(np.asarray(samples.images[start : start + 512])))[1]
            for start in range(0, len(samples.labels), 512)
        ]
    return torch.cat(parts)


def text_features(model: ClipNano, texts: list[str], contexts: Tensor | None = None) -> Tensor:
    """The unit features of texts [C, E], with context vectors [P, D] between the start token and the words."""
    space = model.text.context_length - (0 if contexts is None else len(contexts))
    tokens = encode(texts, space)
    eot = (tokens == END).int().argmax(1)
    x = model.text.embed(tokens[:, : int(eot.max()) + 1])
    if contexts is not None:
        x = torch.cat([x[:, :1], contexts.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        eot = eot + len(contexts)
    return F.normalize(model.text(x, eot), dim=1)


@dataclass(frozen=True)
class Task:
    """Image features [N, E] with labels and domains [N], the images of three parts, and the texts of the C classes.

    `train`, `validation` and `test` are indices of images; the first two are training images of the dataset.
    """

    features: Tensor
    labels: Tensor
    domain: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    texts: list[str]

    @classmethod
    def of(cls, model: ClipNano, samples: Samples, template: str = "{}") -> Task:
        """The task that a dataset poses to a model."""
        order = np.random.default_rng(0).permutation(np.flatnonzero(~samples.is_test))
        validation, train = np.split(order, [round(VALIDATION_SHARE * len(order))])
        return cls(
            image_features(model, samples),
            torch.from_numpy(samples.labels),
            torch.from_numpy(np.zeros_like(samples.labels) if samples.domain is None else samples.domain),
            torch.from_numpy(train),
            torch.from_numpy(validation),
            torch.from_numpy(np.flatnonzero(samples.is_test)),
            [template.format(name) for name in samples.class_names],
        )

    def accuracy(self, classes: Tensor, part: Tensor) -> float:
        """The share of the images in `part` whose nearest class feature, of `classes` [C, E], is right."""
        right = (self.features[part] @ classes.T).argmax(1) == self.labels[part]
        return round(float(right.float().mean()), 4)

    def by_domain(self, classes: Tensor) -> list[float]:
        """The accuracy on the test images of each domain."""
        domains = range(int(self.domain.max()) + 1)
        return [self.accuracy(classes, self.test[self.domain[self.test] == domain]) for domain in domains]


def coop(model: ClipNano, task: Task, length: int, lr: float, steps: int, batch: int, seed: int) -> Tensor:
    """Contexts [length, D] after `steps` steps of SGD with a cosine schedule on random batches of training images."""
    draw = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    width = model.text.width
    contexts = nn.Parameter(torch.randn(length, width, generator=draw) * CONTEXT_STD)
    optimizer = torch.optim.SGD([contexts], lr=lr, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        picked = task.train[torch.randint(len(task.train), (batch,), generator=draw)]
        classes = text_features(model, task.texts, contexts)
        loss = F.cross_entropy(model.scale() * task.features[picked] @ classes.T, task.labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info("step %d  loss %.3f", step, loss.item())
    return contexts.detach()


def zero_shot(model: ClipNano, task: Task) -> dict[str, Any]:
    """The accuracy on the test images with the class names as texts: of all, and of each domain."""
    with torch.no_grad():
        names = text_features(model, task.texts)
    return {"accuracy": task.accuracy(names, task.test), "by_domain": task.by_domain(names)}


def coop_at_best_rate(
    model: ClipNano, task: Task, length: int, lrs: Sequence[float], steps: int, batch: int, seed: int
) -> dict[str, Any]:
    """Train contexts with every rate. Return the best rate by validation, and its accuracies."""
    results: dict[float, dict[str, Any]] = {}
    for lr in lrs:
        contexts = coop(model, task, length, lr, steps, batch, seed)
        with torch.no_grad():
            classes = text_features(model, task.texts, contexts)
        validated = task.accuracy(classes, task.validation)
        results[lr] = {"lr": lr, "validation_accuracy": validated, "accuracy": task.accuracy(classes, task.test)}
        results[lr]["by_domain"] = task.by_domain(classes)
        logger.info("lr %g  validation accuracy %.3f", lr, validated)
    return {"contexts": length, "steps": steps, "batch_size": batch} | results[
        max(results, key=lambda lr: results[lr]["validation_accuracy"])
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure zero-shot accuracy and that of contexts, and print both."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.pretraining.clip_prompts", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: where fedbench reads the weights")
    parser.add_argument("--length", type=int, default=8, help="context vectors")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.003, 0.01, 0.03])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = load(options.folder)
    task = Task.of(model, glyphs())
    measured = {"zero_shot": zero_shot(model, task)}
    sizes = options.length, options.lr, options.steps, options.batch, options.seed
    measured["coop"] = coop_at_best_rate(model, task, *sizes)
    logger.info("%s", json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
