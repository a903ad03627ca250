"""nano: an embedded Vision Transformer with 1.2 million parameters, on which every method runs on a laptop in minutes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer

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
WEIGHTS = Path(__file__).with_name("nano.fp16.safetensors")
RECIPE = Path(__file__).with_name("nano.json")


def build() -> VisionTransformer:
    """The pretrained backbone in float32 and evaluation mode. Raises ValueError if the weights are not those of the recipe."""
    content = WEIGHTS.read_bytes()
    expected = json.loads(RECIPE.read_text(encoding="utf-8"))["sha256"]
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(f"{WEIGHTS.name} is not the file of {RECIPE.name}: its SHA-256 is {digest}, not {expected}")
    model = VisionTransformer(**ARCHITECTURE)
    model.load_state_dict({name: value.float() for name, value in load(content).items()}, strict=True)
    return model.eval()
