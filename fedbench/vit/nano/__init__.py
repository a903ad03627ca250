"""nano: an embedded Vision Transformer with 1.2 million parameters, on which every method runs on a laptop in minutes.

There are two sets of weights of the same architecture. `nano` was pretrained so that prompts can change what its CLS token
says. `nano_plain` was pretrained without prompts and gains little from them: it is the negative control of `nano`.
`fedbench.pretraining` made both.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer

NAMES = ("nano", "nano_plain")
ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "class_token": True,
    "num_classes": 0,
}
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
FOLDER = Path(__file__).parent


def weights_path(name: str, folder: Path = FOLDER) -> Path:
    """The file with the weights called `name`, in half precision."""
    return folder / f"{name}.fp16.safetensors"


def recipe_path(name: str, folder: Path = FOLDER) -> Path:
    """The file that says how the weights called `name` were made, and what was measured with them."""
    return folder / f"{name}.json"


def build(name: str = "nano", folder: Path = FOLDER) -> VisionTransformer:
    """The pretrained backbone called `name` in float32, in evaluation mode.

    Raises ValueError if the weights are not those of the recipe.
    """
    weights, recipe = weights_path(name, folder), recipe_path(name, folder)
    content = weights.read_bytes()
    expected = json.loads(recipe.read_text(encoding="utf-8"))["sha256"]
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(f"{weights.name} is not the file of {recipe.name}: its SHA-256 is {digest}, not {expected}")
    model = VisionTransformer(**ARCHITECTURE)
    model.load_state_dict({key: value.float() for key, value in load(content).items()}, strict=True)
    return model.eval()
