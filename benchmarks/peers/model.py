"""FedVPT on a frozen ViT in plain PyTorch: the model that all systems except fedbench train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.peers.task import EVALUATION_BATCH, VALUES, Task, Values

BASE = "vit_tiny_patch16_224"  # its mean and std are 0.5


def backbone(architecture: Mapping[str, Any], weights: Path | None = None) -> Any:
    """timm's ViT-Ti/16 with some of its numbers changed, e.g. ``{"img_size": 96}``, and without a head."""
    vit = timm.create_model(BASE, pretrained=False, num_classes=0, **architecture)
    if weights is not None:
        vit.load_state_dict(load_file(weights))
    return vit.eval()


class Prompted(nn.Module):
    """P prompt tokens after CLS, the frozen blocks, a linear head on the normed CLS."""

    def __init__(self, vit: Any, start: Values) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.prompt = nn.Parameter(torch.from_numpy(start["prompt"].copy()))  # [P, D]
        classes, width = start["head.weight"].shape
        self.head = nn.Linear(width, classes)
        self.set(start)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [n, C] of images [n, 3, S, S], uint8 or already normalised."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().mul_(2 / 255).sub_(1)
        vit = self.vit
        x = vit._pos_embed(vit.patch_embed(pixels))
        x = torch.cat([x[:, :1], self.prompt.expand(len(x), -1, -1), x[:, 1:]], 1)
        logits: Tensor = self.head(vit.norm(vit.blocks(x))[:, 0])
        return logits

    def loss(self, pixels: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(pixels), y)

    @torch.no_grad()
    def set(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Set the values by name."""
        parameters = dict(self.named_parameters())
        for name in VALUES:
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(values[name])))

    def values(self) -> Values:
        """A copy of the trained values."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name].detach().numpy().copy() for name in VALUES}

    def trained(self) -> list[nn.Parameter]:
        """The parameters for the optimiser."""
        return [p for p in self.parameters() if p.requires_grad]


def make(task: Task) -> Prompted:
    """The model of a task, at its initial values."""
    return Prompted(backbone(task.case["architecture"], task.weights), task.start)


def tensors(task: Task) -> tuple[Tensor, Tensor]:
    """All images as uint8 [N, 3, S, S], and their labels [N]."""
    return torch.from_numpy(task.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(task.labels)


@torch.inference_mode()
def count_right(model: nn.Module, pixels: Tensor, labels: Tensor, test: NDArray[np.int64]) -> int:
    """Correct answers on the samples `test`, in batches across clients, since all clients have one model."""
    parts = torch.from_numpy(test).split(EVALUATION_BATCH)
    return sum(int((model(pixels[part]).argmax(-1) == labels[part]).sum()) for part in parts)
