"""The miniature run of the contract checks: a random ViT of 4 blocks, 16 px noise images, uneven clients, float64."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from fedbench import data
from fedbench.contract import ContractError
from fedbench.method import Aggregation, ClientUpdates, HookError, Method, Task
from fedbench.plan.config import LocalConfig
from fedbench.run.choice import chosen
from fedbench.run.client_optimizer import Recipe
from fedbench.run.cost import task_of
from fedbench.run.local import Trainer
from fedbench.run.server import Server, parameters
from fedbench.run.stacked_model import StackedModel
from fedbench.vit.backbone import Backbone
from fedbench.vit.images import Images

if TYPE_CHECKING:
    from fedbench.text.class_texts import ClassTexts

CPU = torch.device("cpu")
CLASSES, CLIENTS, SIZES = 5, 6, (7, 3, 12, 5, 9, 1)  # SIZES: training samples of each client
ROUNDS = 3


def backbone(dtype: torch.dtype = torch.float64) -> Backbone:
    """D = 32, L = 4, four patches of 8 px, random weights."""
    torch.manual_seed(3)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_ratio=2, num_classes=0)
    for value in vit.parameters():  # timm's initial CLS token and positions are near zero; here every part must matter
        torch.nn.init.normal_(value, std=0.15)
    return Backbone(vit, (0.5,) * 3, (0.5,) * 3).to(dtype)


@dataclasses.dataclass
class MiniRun:
    """A run that trains and merges like `fedbench.run.experiment.Experiment`, without a dataset or a folder."""

    trainer: Trainer
    server: Server
    train: tuple[np.ndarray, ...]
    labels: np.ndarray

    @property
    def model(self) -> StackedModel:
        """The method on the backbone, stacked over clients."""
        return self.trainer.model

    def batches(self, clients: Any, batch_size: int | None = None, round_: int = 1) -> list[data.Batches]:
        """The batches of `clients` in a round, one `Batches` for each local phase."""
        local = self.trainer.local
        return [
            data.batches(
                self.train, np.asarray(clients), batch_size or local.batch_size, local.epochs, 0, round_, phase
            )
            for phase in range(len(self.trainer.phases))
        ]

    def round(
        self, clients: Any, round_: int = 1, batches: list[data.Batches] | None = None, **change: Any
    ) -> ClientUpdates:
        """The updates of `clients` after local training; `change` replaces fields of the trainer."""
        trainer = dataclasses.replace(self.trainer, **change) if change else self.trainer
        batches = batches or self.batches(clients, round_=round_)
        self.server.begin(round_)
        received, read = self.server.send(torch.from_numpy(batches[0].clients)), self.server.read()
        received, reported = chosen(trainer, received, read, [self.train[k] for k in batches[0].clients])
        updates = trainer.train(received, read, batches, Recipe(trainer.local.lr, trainer.local.clip))
        return dataclasses.replace(updates, sums=updates.sums | reported)

    def copy(self) -> MiniRun:
        """A copy whose server may change without changing this run's."""
        server = copy.copy(self.server)
        server.values, server.memory = copy.deepcopy((server.values, server.memory))
        return dataclasses.replace(self, server=server)

    def statistics(self, clients: Any) -> list[dict[str, torch.Tensor]]:
        """The statistics of each of `clients`; [] for a method without `statistics`."""
        hook, features, labels = self.model.method.statistics, self.model.features, self.model.labels
        if hook is None or features is None:
            return []
        return [hook(self.server.read(), features[part], labels[part]) for part in (self.train[k] for k in clients)]

    def report_statistics(self, clients: Any) -> None:
        """The server absorbs the statistics of `clients`."""
        if stats := self.statistics(clients):
            self.server.absorb({name: torch.stack([s[name] for s in stats]) for name in stats[0]})


def _samples() -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Each client's sample numbers, all images [N, 16, 16, 3] and their labels [N]; 20 images belong to no client."""
    draw = np.random.default_rng(0)
    train = tuple(np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]))
    count = sum(SIZES) + 20
    return train, draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), draw.integers(0, CLASSES, count)


@cache
def class_texts(dtype: torch.dtype = torch.float64, device: torch.device = CPU) -> ClassTexts:
    """The five class names in a text tower with D = 16, two blocks and random weights."""
    from fedbench.text.class_texts import ClassTexts, TextSide
    from fedbench.text.tower import TextTower

    start, end = 38, 39

    def encode(texts: Sequence[str], length: int) -> torch.Tensor:
        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            tokens = [start, *(ord(letter) % 37 for letter in text), end]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        tower = TextTower(vocab_size=40, context_length=32, width=16, heads=2, layers=2, embed_dim=12)
        for value in tower.parameters():
            torch.nn.init.normal_(value, std=0.3)
        projection = torch.randn(32, 12, dtype=dtype).to(device)
    side = TextSide(
        tower=tower.requires_grad_(False).to(device, dtype),
        projection=projection,
        scale=torch.tensor(8.0, dtype=dtype, device=device),
        encode=encode,
        end=end,
        template="a {}",
    )
    return ClassTexts.of(side, ("cat", "dog", "horse", "fox", "blackbird"))


def task(vit: Backbone | None = None, local: LocalConfig | None = None) -> Task:
    """The `Task` of the miniature run, which `Method.params` receives; with the sizes of `class_texts`."""
    train, _, labels = _samples()
    counts = np.stack([np.bincount(labels[part], minlength=CLASSES) for part in train])
    histograms = torch.from_numpy(counts).float()
    made = task_of(vit or backbone(), CLASSES, histograms, seed=0, rounds=ROUNDS, local=local)
    texts = class_texts()
    return dataclasses.replace(made, text_width=16, class_text=texts.template.float())


def mini_run(
    method: Method,
    aggregation: Aggregation | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
    vit: Backbone | None = None,
    **local: Any,
) -> MiniRun:
    """A run of `method` before its first round, on `device`, with `vit` or else `backbone`.

    `local` sets fields of the local training.
    """
    vit = backbone(dtype).to(device) if vit is None else vit
    train, pixels, labels = _samples()
    images = Images(pixels, vit.image_size, vit.mean, vit.std, device, dtype)
    aggregation = aggregation or Aggregation()
    recipe = LocalConfig(**{"epochs": 2, "batch_size": 4, "lr": 0.1, "weight_decay": 0.01, "clip": 1.0, **local})
    spec = parameters(method, aggregation, task(vit, recipe))
    everything = torch.arange(len(labels), device=device)
    with torch.no_grad():
        features = (
            vit.feature(images.batch(everything), method.query_after) if method.reads_features(vit.depth) else None
        )
    model = StackedModel(
        method=method,
        spec=spec,
        backbone=vit,
        images=images,
        labels=torch.from_numpy(labels).to(device),
        features=features,
        text=class_texts(dtype, device) if method.reads_text else None,
    )
    trainer = Trainer(model, aggregation, recipe, chunk=CLIENTS)
    return MiniRun(trainer, Server(method, aggregation, spec, CLIENTS, device, dtype), train, labels)


def variants(name: str, cls: type, **fields: Any) -> dict[str, Any]:
    """{name: plug-in}: with its defaults and `fields`, and with each other value of each choice or boolean field."""
    first = cls(**fields)
    plugins: dict[str, Any] = {name: first}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(first):
        hint = hints[field.name]
        values = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
        for value in values:
            if value != getattr(first, field.name):
                plugins[f"{name}-{field.name}={value}"] = cls(**{**fields, field.name: value})
    return plugins


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A method with an aggregation, to be checked on `device`. Its warmed-up runs are cached and must not be changed."""

    method: Method
    aggregation: Aggregation = dataclasses.field(default_factory=Aggregation)
    device: torch.device = CPU
    _runs: dict[str, MiniRun] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def trains(self) -> bool:
        """Whether clients train anything."""
        return any(param.trains for param in self.method.params(task()).values())

    def new_run(self, **options: Any) -> MiniRun:
        """A run before its first round; `options` as in `mini_run`."""
        return mini_run(self.method, self.aggregation, device=self.device, **options)

    def warmed_up(self, **options: Any) -> MiniRun:
        """A run after one merged round, so that no value is zero any more; `options` as in `mini_run`."""
        key = repr(sorted(options.items(), key=str))
        if key not in self._runs:
            run = self.new_run(**options)
            with no_global_draws("statistics() or absorb()"):
                run.report_statistics(range(CLIENTS))
            if run.trainer.phases:
                with no_global_draws("a hook of local training"):
                    updates = run.round((1, 2, 3), round_=0)
                with no_global_draws("a hook of the merge"):
                    run.server.merge(updates)
            self._runs[key] = run
        return self._runs[key]


@contextmanager
def no_global_draws(where: str) -> Iterator[None]:
    """Raise ContractError if the body draws from a global random generator; `where` names the hooks that it calls."""
    before = _generator_states()
    try:
        yield
    except HookError as error:
        if "called random operation" not in str(error):  # what torch says of such a draw in a mapped hook
            raise
        raise _global_draw(str(error).partition(": RuntimeError")[0], "torch") from error
    after = _generator_states()
    if drawn := [name for name, state in before.items() if state != after[name]]:
        raise _global_draw(where, drawn[0])


def _generator_states() -> dict[str, bytes]:
    """The states of the global generators by module."""
    states = {"random": random.getstate(), "numpy": np.random.get_state()}  # noqa: NPY002
    return {"torch": torch.get_rng_state().numpy().tobytes()} | {n: pickle.dumps(state) for n, state in states.items()}


def _global_draw(where: str, module: str) -> ContractError:
    return ContractError(
        where,
        "numbers that every repetition of the run draws again; use the draws of `task` in params(), and "
        "rng.torch_stream(seed, names) in a hook of the server",
        f"it draws from the global random generator of {module}",
    )
