"""Accuracy of clip_nano on glyphs, zero-shot and with learned contexts: `python -m fedbench.pretraining.clip_prompts`.

The contexts are those of CoOp (Zhou et al., IJCV 2022): a few vectors before every class name, learnt by cross-entropy from
pooled training images. Both towers stay frozen.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
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
    """Image features, labels and which images are for testing, and the texts of the classes."""

    features: Tensor
    labels: Tensor
    is_test: Tensor
    domain: Tensor
    texts: list[str]

    @classmethod
    def of(cls, model: ClipNano, samples: Samples, template: str = "{}") -> Task:
        """The task that a dataset poses to a model."""
        return cls(
            image_features(model, samples),
            torch.from_numpy(samples.labels),
            torch.from_numpy(samples.is_test),
            torch.from_numpy(np.zeros_like(samples.labels) if samples.domain is None else samples.domain),
            [template.format(name) for name in samples.class_names],
        )

    def accuracy(self, classes: Tensor) -> float:
        """The share of test images whose nearest class feature [C, E] is right."""
        right = (self.features @ classes.T).argmax(1) == self.labels
        return round(float(right[self.is_test].float().mean()), 4)

    def accuracies_by_domain(self, classes: Tensor) -> list[float]:
        """As `accuracy`, for the test images of each domain."""
        right = ((self.features @ classes.T).argmax(1) == self.labels).float()
        count = int(self.domain.max()) + 1
        return [round(float(right[self.is_test & (self.domain == i)].mean()), 4) for i in range(count)]


def coop(model: ClipNano, task: Task, length: int, lr: float, steps: int, batch: int, seed: int) -> Tensor:
    """Contexts [length, D] after `steps` steps of SGD with a cosine schedule on random batches of training images."""
    draw = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    width = model.text.width
    contexts = nn.Parameter(torch.randn(length, width, generator=draw) * CONTEXT_STD)
    optimizer = torch.optim.SGD([contexts], lr=lr, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    train = torch.nonzero(~task.is_test)[:, 0]
    for step in range(steps):
        picked = train[torch.randint(len(train), (batch,), generator=draw)]
        classes = text_features(model, task.texts, contexts)
        loss = F.cross_entropy(model.scale() * task.features[picked] @ classes.T, task.labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info("step %d  loss %.3f", step, loss.item())
    return contexts.detach()


def zero_shot(model: ClipNano) -> dict[str, Any]:
    """The accuracy on the test images of glyphs with the class names as texts: of all, and of each domain."""
    task = Task.of(model, glyphs())
    with torch.no_grad():
        names = text_features(model, task.texts)
    return {
        "glyphs_zero_shot_accuracy": task.accuracy(names),
        "glyphs_zero_shot_accuracy_by_domain": task.accuracies_by_domain(names),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure zero-shot accuracy and that of contexts, and print both."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.pretraining.clip_prompts", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: where fedbench reads the weights")
    parser.add_argument("--length", type=int, default=8, help="context vectors")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, samples = load(options.folder), glyphs()
    task = Task.of(model, samples)
    with torch.no_grad():
        names = text_features(model, task.texts)
    measured: dict[str, object] = {"zero_shot": task.accuracy(names), "by_domain": task.accuracies_by_domain(names)}
    for lr in options.lr:
        contexts = coop(model, task, options.length, lr, options.steps, options.batch, options.seed)
        with torch.no_grad():
            measured[f"coop, lr {lr}"] = task.accuracy(text_features(model, task.texts, contexts))
    logger.info("%s", json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
