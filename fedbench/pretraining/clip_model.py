"""The two towers of clip_nano as they are trained, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.text import nano_tokenizer
from fedbench.text.tower import TextTower
from fedbench.vit import nano

INITIAL_TEMPERATURE, SMALLEST_TEMPERATURE = 0.07, 0.01
SIZES: dict[str, Any] = {"context_length": 40, "width": 128, "heads": 4, "layers": 3, "embed_dim": 128}
FOLDER = nano_tokenizer.VOCABULARY.parent
WEIGHTS, RECIPE = "clip_nano.fp16.safetensors", "clip_nano.json"


class ClipNano(nn.Module):
    """Two towers that end in one space, and the logarithm of the factor of their cosines."""

    def __init__(self, visual: VisionTransformer, text: TextTower) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        width = visual.embed_dim
        self.visual_projection = nn.Parameter(torch.randn(width, text.embed_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The CLS tokens [N, D] and the unit features [N, E] of normalised images [N, 3, H, W]."""
        cls_token: Tensor = self.visual(images)
        return cls_token, F.normalize(cls_token @ self.visual_projection, dim=1)

    def encode_texts(self, tokens: Tensor, eot: Tensor) -> Tensor:
        """The unit features [T, E] of texts [T, L] that end at `eot` [T]."""
        return F.normalize(self.text(self.text.embed(tokens), eot), dim=1)

    def scale(self) -> Tensor:
        """The factor of the cosines."""
        return self.logit_scale.exp()


def untrained() -> ClipNano:
    """The towers with random weights."""
    return ClipNano(VisionTransformer(**nano.ARCHITECTURE), TextTower(vocab_size=nano_tokenizer.VOCAB_SIZE, **SIZES))


def write(model: ClipNano, provenance: dict[str, Any], folder: Path) -> None:
    """Write the weights in half precision and the file that says how they were made."""
    content = save_tensors({key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    recipe = {
        "vocab_size": nano_tokenizer.VOCAB_SIZE,
        **SIZES,
        "image_tower": nano.ARCHITECTURE,
        "mean": nano.MEAN,
        "std": nano.STD,
        "sha256": hashlib.sha256(content).hexdigest(),
        **provenance,
    }
    (folder / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def load(folder: Path = FOLDER) -> ClipNano:
    """The towers as written, in float32 and evaluation mode."""
    model = untrained()
    content = (folder / WEIGHTS).read_bytes()
    model.load_state_dict({key: value.float() for key, value in load_tensors(content).items()}, strict=True)
    return model.eval()
