"""Makes the weights of nano and nano_plain: `python -m fedbench.pretraining.pretrain_nano`.

The same seed gives the same weights on the same machine and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import tempfile
from dataclasses import asdict, replace
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

from fedbench.data import Samples
from fedbench.plan.plugins import plugins
from fedbench.pretraining.glyph_classes import to_input
from fedbench.pretraining.plain import train_plain
from fedbench.pretraining.questions import train_with_questions
from fedbench.pretraining.training import Recipe
from fedbench.vit import nano

logger = logging.getLogger(__name__)

TRAIN = {"nano": train_with_questions, "nano_plain": train_plain}
RECIPES = {
    "nano": Recipe(seed=0, steps=7000, batch_size=96),
    "nano_plain": Recipe(seed=0, steps=4000, batch_size=64),
}


def features(model: VisionTransformer, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The normed CLS token of every image [N, D], without prompts."""
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


def write(name: str, model: VisionTransformer, pretraining: dict[str, Any], folder: Path) -> None:
    """Write the weights in half precision and the file of provenance, with what is measured on the weights as written."""
    content = save({key: value.half().contiguous() for key, value in model.state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    nano.weights_path(name, folder).write_bytes(content)
    recipe = {
        "architecture": nano.ARCHITECTURE,
        "mean": nano.MEAN,
        "std": nano.STD,
        "sha256": hashlib.sha256(content).hexdigest(),
        "pretraining": pretraining,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, timm, np, PIL, matplotlib)},
        },
    }
    path = nano.recipe_path(name, folder)
    path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    recipe["measured"] = assess(nano.build(name, folder))
    path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    logger.info("%s", json.dumps(recipe, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Train, then write the weights and the file that says how they were made."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.pretraining.pretrain_nano", description=main.__doc__)
    parser.add_argument("name", nargs="?", choices=nano.NAMES, default="nano")
    parser.add_argument("--folder", type=Path, default=nano.FOLDER, help="default: where fedbench reads them")
    parser.add_argument("--threads", type=int, default=1, help="part of what makes a run repeatable")
    for field, value in asdict(RECIPES["nano"]).items():
        default = " and ".join(f"{getattr(recipe, field)} for {name}" for name, recipe in RECIPES.items())
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), help=f"default: {default}")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    changed = {field: value for field in asdict(RECIPES["nano"]) if (value := getattr(options, field)) is not None}
    model, pretraining = TRAIN[options.name](replace(RECIPES[options.name], **changed))
    write(options.name, model, {**pretraining, "threads": options.threads}, options.folder)


if __name__ == "__main__":
    main()
