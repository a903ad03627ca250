"""The benchmark's workloads: frozen ViTs with random weights, clients with noise images, and real runs of methods on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import Plugins
from fedbench.run.experiment import Experiment, build
from fedbench.vit import nano

CLASSES, LR = 100, 0.001  # LR is so small that training on noise does not diverge
SOURCE_SIZE = 32  # pixels, as in CIFAR; each trainer resizes the images itself

# ViTs that timm does not have, by the names under which they are registered with it.
REGISTERED_VITS: dict[str, dict[str, Any]] = {
    "fedbench_smoke": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "fedbench_small": {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4},
}


@dataclass(frozen=True)
class Case:
    """A backbone at an image size, and the clients of one round: each has `each` training images and as many test images."""

    backbone: str
    image_size: int  # pixels
    clients: int = 10
    each: int = 32
    batch_size: int = 32
    matrix: int = 2048  # rows of the square matrices whose product gives the machine's rate

    @property
    def images(self) -> int:
        """Training images of a round."""
        return self.clients * self.each


CASES = {
    "smoke@16": Case("fedbench_smoke", 16, clients=3, each=8, batch_size=4, matrix=256),  # takes seconds: a smoke test
    "nano@32": Case("nano", 32, each=96),
    "small@32": Case("fedbench_small", 32, each=64),
    "vit_tiny@96": Case("vit_tiny_patch16_224", 96),
    "vit_tiny@224": Case("vit_tiny_patch16_224", 224, clients=2),
    "vit_base@224": Case("vit_base_patch16_224", 224, matrix=8192),
}
METHODS = ("fedvpt", "fedvpt_deep", "pep_fedpt", "head_only")


@dataclass(frozen=True)
class Suite:
    """What is measured by default."""

    cases: tuple[str, ...]
    device: str
    precision: str


SUITES = {
    "cpu": Suite(("nano@32", "small@32", "vit_tiny@96", "vit_tiny@224"), "cpu", "float32"),
    "gpu": Suite(("vit_base@224",), "cuda", "bfloat16"),
}


@dataclass(frozen=True)
class World:
    """A case on disk below `root`: images, labels, clients and frozen weights, the same for fedbench and the baselines."""

    case: Case
    root: Path
    images: NDArray[
        np.uint8
    ]  # [2 clients x each, S, S, 3], S at most 32; of each client training images, then test images
    labels: NDArray[np.int64]

    @classmethod
    def make(cls, case: Case, root: Path) -> World:
        """Draw images and weights with fixed seeds and write them below `root`."""
        draw = np.random.default_rng(0)
        count, size = 2 * case.images, min(SOURCE_SIZE, case.image_size)
        world = cls(
            case, root, draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % CLASSES
        )
        user, place = np.divmod(np.arange(count), 2 * case.each)
        columns: dict[str, Any] = {
            "is_test": place >= case.each,
            "user": user,
            "class_names": np.arange(CLASSES).astype(str),
        }
        np.savez(root / "images.npz", images=world.images, labels=world.labels, **columns)
        if case.backbone != "nano":
            torch.manual_seed(0)
            save_file(dict(_architecture(case).state_dict()), root / "vit.safetensors")
        return world

    @property
    def parts(self) -> list[NDArray[np.int64]]:
        """The numbers of each client's training images."""
        return [2 * self.case.each * k + np.arange(self.case.each) for k in range(self.case.clients)]

    def vit(self) -> VisionTransformer:
        """The frozen ViT as a plain timm model."""
        if self.case.backbone == "nano":
            vit = nano.build()
        else:
            vit = _architecture(self.case)
            vit.load_state_dict(load_file(self.root / "vit.safetensors"))
        vit.eval().requires_grad_(False)
        return vit

    def experiment(
        self, method: Mapping[str, Any], plugins: Plugins, device: str, precision: str, **machine: Any
    ) -> Experiment:
        """A run of `method` ({"name": ..., fields}), built as a job builds it; `machine` holds further keys of ``machine:``.

        Raises ConfigError, and any exception of `build`.
        """
        case = self.case
        frozen: dict[str, Any] = {"name": "nano"}
        if case.backbone != "nano":
            _register_vits()
            frozen = {"name": case.backbone, "weights": str(self.root / "vit.safetensors")}
        base = {
            "backbone": {**frozen, "image_size": case.image_size},
            "dataset": {"name": "npz", "path": str(self.root / "images.npz")},
            "partition": "natural",
            "method": dict(method),
            "clients": {"number": case.clients, "per_round": case.clients, "validation": 0},
            "local": {"batch_size": case.batch_size, "lr": LR},
            "rounds": 1,
            "precision": precision,
        }
        content = {"base": base, "machine": {"data": str(self.root), "device": device, **machine}}
        sweep = check_sweep(content, plugins)
        return build(sweep.runs[0], sweep.machine, plugins)


def _architecture(case: Case) -> VisionTransformer:
    _register_vits()
    return cast(VisionTransformer, timm.create_model(case.backbone, num_classes=0, img_size=case.image_size))


def _register_vits() -> None:
    """Register `REGISTERED_VITS` with timm, so that they can be used like its own models."""
    for name, shape in REGISTERED_VITS.items():
        if not timm.is_model(name):

            def entry(img_size: int = SOURCE_SIZE, shape: dict[str, Any] = shape, **_: Any) -> VisionTransformer:
                vit: Any = VisionTransformer(img_size=img_size, num_classes=0, **shape)
                vit.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
                return cast(VisionTransformer, vit)

            entry.__name__ = name
            timm.models.register_model(entry)
