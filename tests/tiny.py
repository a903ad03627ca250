"""A run in miniature for tests of the core: a random ViT of 4 blocks, 16 px noise images, uneven clients, float64."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from fedbench import data
from fedbench.backbone import Backbone
from fedbench.cohort import Cohort
from fedbench.config import Local
from fedbench.cost import task_of
from fedbench.images import Images
from fedbench.local import Trainer
from fedbench.method import Aggregation, Method
from fedbench.plugins import plugins
from fedbench.server import Server, parameters

CLASSES, CLIENTS, SIZES = 5, 6, (7, 3, 12, 5, 9, 1)  # training samples of each client: none fills its last batch alike


def backbone(dtype: torch.dtype = torch.float64) -> Backbone:
    torch.manual_seed(3)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=2, num_classes=0)
    for value in vit.parameters():  # timm starts with a near-zero CLS and positions; here every part must matter
        torch.nn.init.normal_(value, std=0.15)
    return Backbone(vit, (0.5,) * 3, (0.5,) * 3).to(dtype)


@dataclasses.dataclass
class Tiny:
    """What a test needs to train and merge: like fedbench.setting.Setting, without a dataset or a folder."""

    trainer: Trainer
    server: Server
    train: tuple[np.ndarray, ...]
    labels: np.ndarray

    @property
    def cohort(self) -> Cohort:
        return self.trainer.cohort

    def batches(self, clients: Any, batch_size: int | None = None, round_: int = 1) -> list[data.Batches]:
        local = self.trainer.local
        return [
            data.batches(
                self.train, np.asarray(clients), batch_size or local.batch_size, local.epochs, 0, round_, phase
            )
            for phase in range(len(self.trainer.phases))
        ]

    def round(self, clients: Any, round_: int = 1, batches: list[data.Batches] | None = None, **change: Any) -> Any:
        """Train `clients`; `change` replaces fields of the trainer."""
        trainer = dataclasses.replace(self.trainer, **change)
        batches = batches or self.batches(clients, round_=round_)
        sent = self.server.send(torch.from_numpy(batches[0].clients))
        return trainer.train(sent, self.server.read(), batches, trainer.local.lr)

    def introduce(self, clients: Any) -> None:
        method = self.cohort.method
        if method.statistics is None:
            return
        stats = [
            method.statistics(
                self.server.read(), self.cohort.features[self.train[k]], self.cohort.labels[self.train[k]]
            )
            for k in clients
        ]
        self.server.absorb({name: torch.stack([s[name] for s in stats]) for name in stats[0]})


def tiny(
    method: Method, aggregation: Aggregation | None = None, dtype: torch.dtype = torch.float64, **local: Any
) -> Tiny:
    vit = backbone(dtype)
    draw = np.random.default_rng(0)
    train = tuple(np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]))
    count = sum(SIZES) + 20
    pixels = draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    labels = draw.integers(0, CLASSES, count)
    counts = np.stack([np.bincount(labels[part], minlength=CLASSES) for part in train])
    images = Images(pixels, 16, vit.mean, vit.std, torch.device("cpu"), dtype)
    task = task_of(vit, CLASSES, torch.from_numpy(counts).float(), seed=0)
    aggregation = aggregation or Aggregation()
    spec = parameters(method, aggregation, task)
    with torch.no_grad():
        features = vit(images.batch(torch.arange(count)))[0]["cls"]
    cohort = Cohort(method, spec, vit, images, torch.from_numpy(labels), features)
    recipe = Local(**{"epochs": 2, "batch_size": 4, "lr": 0.1, "weight_decay": 0.01, "clip": 1.0, **local})
    trainer = Trainer(cohort, aggregation, recipe, chunk=CLIENTS)
    return Tiny(trainer, Server(method, aggregation, spec, CLIENTS, torch.device("cpu"), dtype), train, labels)


def variants(kind: Literal["method", "aggregation"]) -> dict[str, Any]:
    """Every plug-in with its defaults, and once with each other value of each field that is a choice or a switch.

    Fields that every method has are varied where the core has different things to do: trained, mixed, without training.
    """
    common = {field.name for field in dataclasses.fields(Method)}
    found: dict[str, Any] = {}
    for name, cls in plugins().classes[kind].items():
        found[name] = cls()
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in common and name not in ("fedvpt", "pep_fedpt", "fedncm"):
                continue
            hint = hints[field.name]
            values = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
            for value in values:
                if value != field.default:
                    found[f"{name}-{field.name}={value}"] = cls(**{field.name: value})
    return found


METHODS, AGGREGATIONS = variants("method"), variants("aggregation")
# Every method runs with FedAvg; every other aggregation with methods of each structure: all values shared, some at the client
# and trained in phases, some merged by the method itself.
STRUCTURES = ("fedvpt", "fedrep", "pep_fedpt-average=class_counts")
PAIRS = {
    f"{m}+{a}": (METHODS[m], AGGREGATIONS[a]) for m, a in itertools.product(STRUCTURES, AGGREGATIONS) if a != "fedavg"
}
