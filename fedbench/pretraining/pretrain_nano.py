"""Makes the weights of nano: `python -m fedbench.pretraining.pretrain_nano` trains it to name characters of no benchmark.

Characters of the scripts that the glyphs dataset draws from are left out, and so is whatever looks like one of them;
fonts and styles are others too. The same seed gives the same weights on the same machine and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import platform
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.data import Samples
from fedbench.plan.plugins import plugins
from fedbench.sources.glyph_renderer import ATLAS, Floats, Style, clean_masks, has_glyph, load_font, render, stream
from fedbench.vit.nano import ARCHITECTURE, MEAN, RECIPE, STD, WEIGHTS, build

logger = logging.getLogger(__name__)

# Greek, Cyrillic, Armenian and Georgian are the benchmark's. The rest is what the fonts have most of.
BENCHMARK_BLOCKS = ((0x0370, 0x0400), (0x0400, 0x0530), (0x0530, 0x0590), (0x10A0, 0x1100))
BLOCKS = (
    (0x0021, 0x0250),  # Latin, digits and signs
    (0x0250, 0x02B0),  # phonetic letters
    (0x05D0, 0x05EB),  # Hebrew
    (0x0E81, 0x0EDE),  # Lao
    (0x1401, 0x1677),  # Canadian syllabics
    (0x1E00, 0x1F00),  # Latin with more marks
    (0x2100, 0x2150),  # letter-like signs
    (0x2190, 0x2400),  # arrows, mathematics, technical signs
    (0x2500, 0x2580),  # box drawing
    (0x25A0, 0x2800),  # shapes, signs, dingbats
    (0x2900, 0x2C00),  # more arrows and mathematics
    (0x2C60, 0x2C80),  # rare Latin
    (0xA4D0, 0xA500),  # Lisu
    (0xA720, 0xA800),  # rare Latin
)
ALIKE = 0.93  # correlation of two blurred masks from which on they count as one character

STYLES = (
    Style(
        "ink",
        "DejaVuSans.ttf",
        ink=((0.0, 1.0), (0.0, 0.6), (0.0, 0.4)),
        paper=((0.0, 1.0), (0.0, 0.3), (0.75, 1.0)),
    ),
    Style(
        "slate",
        "DejaVuSans-Oblique.ttf",
        ink=((0.0, 1.0), (0.0, 0.4), (0.75, 1.0)),
        paper=((0.0, 1.0), (0.0, 0.6), (0.05, 0.35)),
        rotation=0.25,
        slant=(-0.3, 0.3),
        noise=0.05,
    ),
    Style(
        "sign",
        "DejaVuSans-BoldOblique.ttf",
        ink=((0.0, 1.0), (0.2, 0.8), (0.0, 0.5)),
        paper=((0.0, 1.0), (0.2, 0.8), (0.65, 1.0)),
        texture="gradient",
        texture_strength=(0.0, 0.15),
        slant=(-0.3, 0.3),
        warp=0.06,
        inverted=0.5,
    ),
)


def looks(chars: list[str]) -> Floats:
    """One blurred unit vector per character [C, 256]; their products are correlations."""
    masks = clean_masks(chars, STYLES[0].font)
    blocks = ATLAS // 16
    small = masks.reshape(-1, 16, blocks, 16, blocks).mean((2, 4))
    padded = np.pad(small, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    flat = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]).reshape(len(chars), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True), dtype=np.float32)


def characters() -> list[str]:
    """The pretraining classes: visible in every font used, unlike each other and unlike every benchmark script."""
    fonts = [load_font(style.font) for style in STYLES]

    def drawable(blocks: tuple[tuple[int, int], ...]) -> list[str]:
        chars = [chr(code) for low, high in blocks for code in range(low, high)]
        known = [char for char in chars if unicodedata.category(char)[0] in "LNPS"]
        return [char for char in known if all(has_glyph(font, char) for font in fonts)]

    avoided, candidates = drawable(BENCHMARK_BLOCKS), drawable(BLOCKS)
    similar = looks(candidates) @ looks(avoided + candidates).T
    kept: list[int] = []
    for index in range(len(candidates)):
        others = [*range(len(avoided)), *(len(avoided) + other for other in kept)]
        if similar[index, others].max() < ALIKE:
            kept.append(index)
    return [candidates[index] for index in kept]


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to what the model reads, float32 [N, 3, H, W]."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def batches(
    masks: list[Floats], size: int, steps: int, *name: int | str, easy: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh images in every batch, so that none is seen twice; the first `easy` batches hold the first style alone."""
    draw = stream(*name)
    for step in range(steps):
        labels = draw.integers(0, len(masks[0]), size)
        use = 1 if step < easy else len(STYLES)
        parts = zip(masks[:use], STYLES[:use], np.array_split(labels, use), strict=True)
        images = [render(mask, style, part, draw) for mask, style, part in parts]
        yield to_input(np.concatenate(images)), torch.from_numpy(labels)


def redrawn(masks: Floats) -> Tensor:
    """The coarse clean picture of every class, centred, as a target for regression [C, 256]."""
    coarse = torch.from_numpy(masks.reshape(-1, 16, ATLAS // 16, 16, ATLAS // 16).mean((2, 4)).reshape(len(masks), -1))
    return (coarse - coarse.mean(0)) / coarse.std()


def start(seed: int, classes: int) -> tuple[VisionTransformer, nn.Linear, nn.Linear]:
    """The untrained model, the head that names and the head that redraws."""
    width = ARCHITECTURE["embed_dim"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, name, redraw = VisionTransformer(**ARCHITECTURE), nn.Linear(width, classes), nn.Linear(width, 256)
        # The library's initial weights suit wide models; here they leave attention and positions close to nothing.
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        tokens = dict(model.named_parameters())
        for token in ("pos_embed", "cls_token"):
            nn.init.normal_(tokens[token], std=0.3)
    return model, name, redraw


def train(seed: int, steps: int, size: int, lr: float, weight_decay: float) -> tuple[VisionTransformer, dict[str, Any]]:
    """Train from scratch; returns the model and what the recipe should remember."""
    chars = characters()
    masks = [clean_masks(chars, style.font, style.stroke, style.hollow) for style in STYLES]
    pictures = redrawn(masks[0])
    model, head, redraw = start(seed, len(chars))
    parameters = [*model.parameters(), *head.parameters(), *redraw.parameters()]
    groups = [{"params": [p for p in parameters if (p.ndim > 1) == decays]} for decays in (True, False)]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    warm = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    started = time.monotonic()
    model.train()
    # One style first, and a picture to redraw beside a name to guess, both shorten the time before anything is learnt.
    easy = steps // 8
    for step, (images, labels) in enumerate(batches(masks, size, steps, "pretrain", seed, easy=easy), 1):
        z = model(images)
        loss = loss_of(head(z), labels) + nn.functional.mse_loss(redraw(z), pictures[labels])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info("step %d of %d  loss %.3f  %.0f s", step, steps, loss.item(), time.monotonic() - started)
    model.eval()
    with torch.no_grad():
        hits = [
            (head(model(images)).argmax(1) == labels).float().mean().item()
            for images, labels in batches(masks, 256, 20, "validate", seed)
        ]
    return model, {
        "classes": len(chars),
        "styles": [style.name for style in STYLES],
        "images": steps * size,
        "steps": steps,
        "batch_size": size,
        "optimizer": {
            "name": "AdamW",
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": [0.9, 0.98],
            "schedule": "100 steps of warm-up, cosine",
        },
        "label_smoothing": 0.1,
        "also": f"mean squared error of a redrawn 16 x 16 picture; the first {easy} steps with one style",
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "pretraining_accuracy": round(sum(hits) / len(hits), 4),
    }


def features(model: VisionTransformer, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The normed CLS token of every image [N, D]."""
    with torch.no_grad():
        parts = [model(to_input(images[start : start + 256])) for start in range(0, len(images), 256)]
    return np.asarray(torch.cat(parts).numpy())


def assess(model: VisionTransformer) -> dict[str, float]:
    """How far the frozen features carry on the glyphs dataset, all styles pooled: accuracy on its test images."""
    with tempfile.TemporaryDirectory() as folder:
        glyphs: Samples = plugins().make("dataset", {"name": "glyphs"}).load(Path(folder))
    z, y, train_set, test_set = features(model, glyphs.images), glyphs.labels, ~glyphs.is_test, glyphs.is_test
    means = np.stack([z[train_set & (y == label)].mean(0) for label in range(glyphs.num_classes)])
    nearest = ((z[test_set, None] - means[None]) ** 2).sum(-1).argmin(1)
    probe = LogisticRegression(C=1.0, max_iter=1000).fit(z[train_set], y[train_set])
    return {
        "glyphs_nearest_class_mean_accuracy": round(float((nearest == y[test_set]).mean()), 4),
        "glyphs_linear_probe_accuracy": round(float(probe.score(z[test_set], y[test_set])), 4),
    }


def main(arguments: list[str] | None = None) -> None:
    """Train, then write the weights and the recipe."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.pretraining.pretrain_nano", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1, help="part of what makes a run repeatable")
    parser.add_argument("--measure", action="store_true", help="keep the weights, only measure them on glyphs again")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    if options.measure:
        recipe = json.loads(RECIPE.read_text(encoding="utf-8"))
    else:
        model, training = train(options.seed, options.steps, options.batch_size, options.lr, options.weight_decay)
        content = save({name: value.half().contiguous() for name, value in model.state_dict().items()})
        WEIGHTS.write_bytes(content)
        recipe = {
            "architecture": ARCHITECTURE,
            "mean": MEAN,
            "std": STD,
            "sha256": hashlib.sha256(content).hexdigest(),
            "pretraining": {**training, "threads": options.threads},
            "versions": {
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (torch, timm, np, PIL, matplotlib)},
            },
        }
        RECIPE.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    recipe["measured"] = assess(build())  # of the weights as shipped, in half precision
    RECIPE.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    logger.info("%s", json.dumps(recipe, indent=2))


if __name__ == "__main__":
    main()
