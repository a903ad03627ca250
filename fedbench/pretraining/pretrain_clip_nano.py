"""Makes the weights of clip_nano: `python -m fedbench.pretraining.pretrain_clip_nano`.

The characters and images are drawn first and kept in a folder, so that several trainings can share them.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from fedbench.plan.plugins import plugins
from fedbench.pretraining import clip_captions, clip_characters, clip_images, clip_model, clip_prompts
from fedbench.pretraining.clip_characters import Alphabet
from fedbench.pretraining.clip_images import Drawings
from fedbench.pretraining.clip_training import ClipRecipe, ClipTraining, new_model
from fedbench.text.nano_tokenizer import VOCABULARY, tokenize

LONGEST_NAME = 20  # tokens; the few longer names would make every caption longer

logger = logging.getLogger(__name__)


def benchmark_characters() -> str:
    """The characters of the glyphs dataset."""
    extent = plugins().make("dataset", {"name": "glyphs"}).extent(Path())
    return "".join(clip_characters.character_named(name) for name in extent.samples.class_names)


def drawn_alphabet(folder: Path, workers: int) -> Alphabet:
    """The characters, read from `folder` or drawn into it."""
    path = folder / "alphabet.npz"
    if not path.exists():
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            clip_characters.draw_alphabet(benchmark_characters(), pool).save(path)
    return Alphabet.load(path)


def with_short_names(alphabet: Alphabet) -> Alphabet:
    """The characters whose name has at most LONGEST_NAME tokens."""
    return alphabet.only(np.array([len(tokenize(name)) <= LONGEST_NAME for name in alphabet.names]))


def drawn_images(alphabet: Alphabet, folder: Path, each: int, seed: int, workers: int) -> Drawings:
    """The images, read from `folder` or drawn into it."""
    paths = [folder / f"{name}.npy" for name in ("images", "char", "look")]
    if not paths[-1].exists():
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            drawings = clip_images.draw_all(alphabet, each, seed, pool)
        columns: tuple[NDArray[Any], ...] = (drawings.images, drawings.char, drawings.look)
        for path, part in zip(paths, columns, strict=True):
            np.save(path, part)
    return Drawings(*(np.load(path) for path in paths))


def provenance(recipe: ClipRecipe, alphabet: Alphabet, drawings: Drawings, trained: dict[str, Any]) -> dict[str, Any]:
    """What the file beside the weights says about the training."""
    return {
        "pretraining": {
            **asdict(recipe),
            **trained,
            "characters": len(alphabet.chars),
            "masks": len(alphabet.masks),
            "faces": [asdict(face) for face in clip_characters.FACES],
            "images": len(drawings.images),
            "largest_correlation_with_a_benchmark_character": clip_characters.MAX_CORRELATION,
        },
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (torch, timm, np)},
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Draw the characters and images, train, write the weights, and measure zero-shot accuracy on glyphs."""
    parser = argparse.ArgumentParser(prog="python -m fedbench.pretraining.pretrain_clip_nano", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=clip_model.FOLDER, help="default: where fedbench reads them")
    parser.add_argument("--drawn", type=Path, required=True, help="folder of the drawn characters and images")
    parser.add_argument("--each", type=int, default=3, help="images of each character in each face and palette")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="processes that draw")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=("vocabulary", "draw"), help="stop after this")
    for field, value in asdict(ClipRecipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")
    options.drawn.mkdir(parents=True, exist_ok=True)
    alphabet = drawn_alphabet(options.drawn, options.workers)
    if options.only == "vocabulary":
        words = clip_characters.vocabulary(alphabet.names, [*clip_captions.WORDS])
        VOCABULARY.write_text("\n".join(words) + "\n", encoding="utf-8")
        return
    alphabet = with_short_names(alphabet)
    drawings = drawn_images(alphabet, options.drawn, options.each, 0, options.workers)
    if options.only == "draw":
        return
    recipe = ClipRecipe(**{field: getattr(options, field) for field in asdict(ClipRecipe())})
    training = ClipTraining(recipe, new_model(recipe), alphabet, drawings, options.device)
    facts = provenance(recipe, alphabet, drawings, training.run())
    clip_model.write(training.model, facts, options.folder)
    written = clip_model.load(options.folder)
    task = clip_prompts.Task.of(written, clip_prompts.glyphs())
    facts["measured"] = {"glyphs": {"zero_shot": clip_prompts.zero_shot(written, task)}}
    clip_model.write(training.model, facts, options.folder)
    logger.info("%s", json.dumps(facts["measured"], indent=2))


if __name__ == "__main__":
    main()
