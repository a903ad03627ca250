"""Baselines without fedbench: a bare PyTorch loop at its best batch size, and a loop over clients as in published code.

Both train VPT-shallow with SGD and momentum on the same images, labels and frozen ViT.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from fedbench.bench.cases import CLASSES, LR, World
from fedbench.bench.clock import timed

PROMPTS, MOMENTUM = 8, 0.9
BARE_BATCHES = (16, 32, 64, 128, 256)

Epoch = Callable[[], int]  # one pass over the training images; returns their number


class Prompted(nn.Module):
    """A timm ViT with trained prompts at its input and a trained linear head: images [B, 3, S, S] -> logits [B, C]."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.prompt = nn.Parameter(torch.zeros(PROMPTS, vit.embed_dim).uniform_(-0.1, 0.1))
        self.head = nn.Linear(vit.embed_dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits; the prompts are inserted between CLS and the patches."""
        vit = self.vit
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        x = torch.cat([x[:, :1], self.prompt.expand(len(x), -1, -1), x[:, 1:]], 1)
        logits: Tensor = self.head(vit.norm(vit.blocks(x))[:, 0])
        return logits

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum on the trained parameters."""
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM)


def bare_training(model: Prompted, pixels: Tensor, labels: Tensor, batch: int, bfloat16: bool) -> Epoch:
    """A plain training loop for one model over `pixels` [N, 3, S, S] that are already resized and normalised."""
    optimizer = model.optimizer()

    def epoch() -> int:
        for start in range(0, len(pixels), batch):
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(pixels[start : start + batch])
            loss = F.cross_entropy(logits.float(), labels[start : start + batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(pixels)

    return epoch


def bare_evaluation(model: Prompted, pixels: Tensor, batch: int, bfloat16: bool) -> Epoch:
    """Forward passes of the same model over `pixels`."""

    @torch.inference_mode()
    def epoch() -> int:
        for start in range(0, len(pixels), batch):
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
                model(pixels[start : start + batch]).argmax(-1)
        return len(pixels)

    return epoch


def fastest(make: Callable[[int], Epoch], count: int, device: torch.device) -> tuple[int, Epoch]:
    """The fastest batch size of `BARE_BATCHES` up to `count` images, and the bare loop with it."""
    sizes = [size for size in BARE_BATCHES if size <= count]
    epochs = {size: make(size) for size in sizes}
    for epoch in epochs.values():
        epoch()
    best = min(sizes, key=lambda size: min(timed(epochs[size], device) for _ in range(2)))
    return best, epochs[best]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images [N, H, W, 3] as Pillow images, transformed one at a time."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[[Image.Image], Tensor]
    ):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def published(world: World, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Epoch:
    """A round as in published code, in float32: clients train one after another, then the server averages.

    Each client loads the server's whole model and has its own optimiser and its own loader over Pillow images.
    """
    case = world.case
    transform = transforms.Compose(
        [
            transforms.Resize((case.image_size, case.image_size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    pictures = Pictures(world.images, world.labels, transform)
    model = Prompted(world.vit()).to(device)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    server = {name: value.detach().clone() for name, value in model.state_dict().items()}
    workers = min(8, os.cpu_count() or 1) if device.type == "cuda" else 0  # on a GPU the CPU cores are free

    def epoch() -> int:
        returned = []
        for part in world.parts:
            model.load_state_dict(server)
            optimizer = model.optimizer()
            client_images = Subset(pictures, part.tolist())
            loader = DataLoader(
                client_images, case.batch_size, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda"
            )
            for images, labels in loader:
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            returned.append({name: model.get_parameter(name).detach().clone() for name in trained})
        for name in trained:
            server[name] = torch.stack([values[name] for values in returned]).mean(0)
        return case.images

    return epoch
