"""What the rounds of a run work with: data and split, frozen backbone, method, trainer and server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedbench import data
from fedbench.base import process_cache, rng
from fedbench.base.provenance import code_hash, commit
from fedbench.base.record_schema import RunFacts
from fedbench.data import Batches, Ints, Samples, Split
from fedbench.method import Aggregation, ClientUpdates, Method, Metric, Param, Task
from fedbench.method.fitting import check_blocks, check_parameters, check_private
from fedbench.plan.config import BackboneConfig, Machine, PlannedRun, RunConfig, short_name
from fedbench.plan.device import choose_device, choose_dtype, set_tf32
from fedbench.plan.plugins import Kind, Plugins
from fedbench.plan.split import split_of
from fedbench.run import cost
from fedbench.run.choice import chosen
from fedbench.run.client_optimizer import Recipe
from fedbench.run.local import Trainer, without_training
from fedbench.run.participation import Participation, participation
from fedbench.run.server import Server, parameters
from fedbench.run.stacked import Stacked
from fedbench.run.stacked_model import StackedModel
from fedbench.run.step_graphs import StepGraphs
from fedbench.run.texts import texts_of
from fedbench.vit import backbone
from fedbench.vit.backbone import Backbone
from fedbench.vit.compiled import CompiledBlocks
from fedbench.vit.features import data_hash, features
from fedbench.vit.images import Images, sent_to
from fedbench.vit.token_cache import CachedTokens, cached_tokens, first_block

if TYPE_CHECKING:
    from fedbench.text.class_texts import ClassTexts


@dataclass(frozen=True, kw_only=True)
class Training:
    """The prepared local training of a cohort. It runs alone, or together with that of other runs (`fedbench.run.pack`)."""

    trainer: Trainer
    clients: Tensor  # [K]
    received: Stacked
    read: Stacked
    batches: Sequence[Batches]  # one item for each local phase; empty for a method that trains nothing
    samples: Sequence[int]  # [K]
    lr: float
    reported: Stacked = field(default_factory=dict)  # what the method's `choose_by_loss` reports, [K, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe of all its clients."""
        return Recipe(self.lr, self.trainer.local.clip)

    def train(self) -> ClientUpdates:
        """Train the cohort."""
        if not self.batches:
            return without_training(self.clients, self.received, self.samples, self.lr)
        updates = self.trainer.train(self.received, self.read, self.batches, self.recipe)
        return replace(updates, sums=updates.sums | self.reported)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the rounds of a run work with."""

    run: RunConfig
    samples: Samples
    split: Split
    model: StackedModel
    trainer: Trainer
    server: Server
    image_cost: cost.ImageCost
    chunk: int  # images in one pass
    task: Task
    participation: Participation
    metrics: Mapping[str, Metric]  # by name
    facts: RunFacts

    def cohort_of(self, round_: int) -> Ints:
        """The clients of round `round_` (from 1). They do not depend on the method, unless losses choose them."""
        losses = self.server.last_loss
        return self.participation.cohort(round_, None if losses is None else losses.cpu().numpy())

    def train(self, clients: Ints, lr: float, *stream: int | str, epochs: int | None = None) -> ClientUpdates:
        """Train `clients` from what the server sends to each; `stream` names the random stream of their batches.

        ``updates.clients`` gives the order of the rows of the updates.
        """
        return self.prepare(clients, lr, *stream, epochs=epochs).train()

    def prepare(
        self, clients: Ints, lr: float, *stream: int | str, epochs: int | None = None, passes: Ints | None = None
    ) -> Training:
        """Prepare the training that `train` does. With `epochs`, it is fine-tuning before evaluation.

        `passes`: each client's local epochs, if not all train for `local.epochs`.
        """
        local, server, trainer = self.run.local, self.server, self.trainer
        train: Sequence[Ints] = self.split.train
        if epochs is not None:
            trainer = replace(trainer, local=local.model_copy(update={"epochs": epochs}), finetuning=True)
        elif self.model.method.centralized:
            train, clients = data.Parts.of([self._pool(clients, *stream)]), np.zeros(1, dtype=np.int64)
            passes = None
        local, seed = trainer.local, self.run.stream("batches")
        batches = [
            data.batches(
                train, clients, local.batch_size, local.epochs if passes is None else passes, seed, *stream, phase
            )
            for phase in range(len(trainer.phases))
        ]
        rows = torch.from_numpy(batches[0].clients if batches else clients)
        received = server.send(rows)
        if epochs is None and not trainer.model.method.needs_prior:
            received.pop("prior", None)
        received, reported = chosen(trainer, received, server.read(), [train[k] for k in rows.tolist()])
        return Training(
            trainer=trainer,
            clients=sent_to(server.device, rows),
            received=received,
            read=server.read(),
            batches=batches,
            samples=[len(train[k]) for k in clients],
            lr=lr,
            reported=reported,
        )

    def _pool(self, clients: Ints, *stream: int | str) -> Ints:
        """As many samples as `clients` hold, drawn from all clients that train. For a method without clients."""
        train = self.split.train
        pool = train.indices[~self.split.held_out[train.owners]]
        draw = rng.numpy_stream(self.run.stream("batches"), "pool", *stream)
        return np.sort(draw.choice(pool, int(train.sizes[clients].sum()), replace=False))


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The part of a run that does not depend on the method: samples, backbone, images on the device, and hashes.

    Runs of one process share it.
    """

    samples: Samples
    vit: Backbone
    images: Images
    data_hash: str
    weights_hash: str
    key: str  # equal keys mean equal content
    cache_name: str  # of the files with cached features and tokens


def build(planned: PlannedRun, machine: Machine, plugins: Plugins, halvings: int = 0) -> Experiment:
    """Load the data, split it, and assemble the run; `halvings`: how often to halve the number of images in a pass.

    Raises DataError, BackboneError and any exception of a plug-in.
    """
    run = planned.run
    device, dtype = choose_device(machine.device), choose_dtype(run.precision)
    set_tf32(run.precision == "tf32")
    frozen = load_frozen(planned, machine, plugins, device, dtype)
    split = split_of(run, frozen.samples, plugins.make("partition", run.partition))
    method, aggregation = plugins.make("method", run.method), plugins.make("aggregation", run.aggregation)
    names = frozen.samples.class_names
    text, trained_text = texts_of(run, names, method, frozen.key, device, dtype) or (None, None)
    task = _task(run, frozen, split, trained_text)
    spec = _parameters(task, frozen.vit.depth, method, aggregation)
    chunk = _images_in_a_pass(method, spec, frozen.vit, run.precision, machine, device, halvings)
    model = replace(_model(run, machine, frozen, method, spec, chunk), text=text)
    clients, piece = _chunk_of_clients(chunk, run.local.batch_size)
    takes_part = participation(run, split.held_out, split.train.sizes)
    server = Server(method, aggregation, spec, run.clients.number, device, dtype, machine.clients)
    if run.clients.draw == "loss":
        server.last_loss = torch.full((run.clients.number,), torch.inf, dtype=torch.float64)
    return Experiment(
        run=run,
        samples=frozen.samples,
        split=split,
        model=model,
        trainer=Trainer(
            replace(model, method=method.in_training(), text=trained_text),
            aggregation,
            run.local,
            clients,
            piece,
            graphs=StepGraphs() if machine.graphs and device.type == "cuda" else None,
        ),
        server=server,
        image_cost=cost.image_cost(
            method, spec, frozen.vit, run.local.augment, None if trained_text is None else trained_text.cost()
        ),
        chunk=chunk,
        task=task,
        participation=takes_part,
        metrics={block["name"]: plugins.make("metric", block) for block in run.metrics},
        facts=_facts(planned, plugins, frozen, split, takes_part, method, spec, chunk),
    )


def load_frozen(
    planned: PlannedRun, machine: Machine, plugins: Plugins, device: torch.device, dtype: torch.dtype
) -> Frozen:
    """Samples, backbone and images, from this process's cache if an earlier run has loaded them."""
    run, cached = planned.run, process_cache.cached
    # The identity names files by their content, so a changed file has another key.
    source = json.dumps([planned.identity["dataset"], str(machine.data)], sort_keys=True)
    key = json.dumps([planned.identity["backbone"], str(device), str(dtype), machine.shortcuts], sort_keys=True)
    samples = cached("samples", source, lambda: plugins.make("dataset", run.dataset).load(machine.data))
    vit = cached("backbone", key, lambda: _backbone(run.backbone, machine).to(device, dtype))
    images = cached(
        "images",
        (source, key),
        lambda: Images(samples.images, vit.image_size, vit.mean, vit.std, device, dtype),
    )
    weights = cached("weights", key, vit.weights_hash)
    contents = cached("contents", source, lambda: data_hash(samples))
    return Frozen(
        samples=samples,
        vit=vit,
        images=images,
        data_hash=contents,
        weights_hash=weights,
        key=key,
        # A run without shortcuts must not read what a run with shortcuts has cached: the two are to be compared.
        cache_name=f"{weights}-{contents}-{vit.image_size}-{run.precision}" + ("" if machine.shortcuts else "-plain"),
    )


def _backbone(block: BackboneConfig, machine: Machine) -> Backbone:
    return backbone.make(block.name, block.weights, block.image_size, shortcuts=machine.shortcuts, pool=block.pool)


def _task(run: RunConfig, frozen: Frozen, split: Split, text: ClassTexts | None) -> Task:
    """The `Task` that the plug-ins receive."""
    samples = frozen.samples
    counts = torch.from_numpy(split.class_counts(samples.labels, samples.num_classes)).float()
    held_out = int(split.held_out.sum())
    seed = run.stream("init")
    task = cost.task_of(frozen.vit, samples.num_classes, counts, seed, held_out, run.rounds, run.local)
    if text is None:
        return task
    return replace(task, text_width=text.words.shape[-1], class_text=text.template.float().cpu())


def _parameters(task: Task, depth: int, method: Method, aggregation: Aggregation) -> dict[str, Param]:
    """The tensors of the run. Raises ValueError if options exclude each other."""
    spec = parameters(method, aggregation, task)
    check_private(method, aggregation)
    check_blocks(method, depth)
    check_parameters(method, spec)
    return spec


def _images_in_a_pass(
    method: Method,
    spec: Mapping[str, Param],
    vit: Backbone,
    precision: str,
    machine: Machine,
    device: torch.device,
    halvings: int,
) -> int:
    """Images in one pass of the backbone: as configured or chosen, and halved each time that memory ran out."""
    chosen = machine.chunk_images or cost.chunk_images(cost.one_pass(method, spec, vit), device, precision)
    return max(1, chosen >> halvings)


def _chunk_of_clients(chunk: int, batch_size: int) -> tuple[int, int]:
    """For `chunk` images in a pass: how many clients are trained together, and the samples of one client in a pass."""
    pieces = max(1, round(batch_size / chunk))
    return max(1, chunk // batch_size), -(-batch_size // pieces)


def _model(
    run: RunConfig, machine: Machine, frozen: Frozen, method: Method, spec: Mapping[str, Param], chunk: int
) -> StackedModel:
    """The method on the frozen backbone, with the caches that it can use."""
    device = frozen.images.device
    clients, piece = _chunk_of_clients(chunk, run.local.batch_size)
    return StackedModel(
        method=method,
        spec=spec,
        backbone=_backbone_in_passes(run, frozen, method),
        images=frozen.images,
        labels=torch.from_numpy(np.array(frozen.samples.labels)).to(device),
        features=_features(frozen, machine, method.query_after) if method.reads_features(frozen.vit.depth) else None,
        mode=machine.clients,
        autocast=run.precision == "bfloat16",
        compiled=CompiledBlocks(clients * piece) if machine.compile else None,
        cached_tokens=_cached_tokens(run, machine, frozen, method),
    )


def _backbone_in_passes(run: RunConfig, frozen: Frozen, method: Method) -> Backbone:
    """The backbone that forward passes use, with bfloat16 copies of its weights if these are only read."""
    if run.precision != "bfloat16" or method.backbone_weights is not None:
        return frozen.vit
    return process_cache.cached("bfloat16", frozen.key, lambda: frozen.vit.with_products_in(torch.bfloat16))


def _features(frozen: Frozen, machine: Machine, after: int | None) -> Tensor:
    return process_cache.cached(
        "features",
        (frozen.cache_name, frozen.key, after),
        lambda: features(frozen.vit, frozen.images, frozen.cache_name, machine.data, after),
    )


def _cached_tokens(run: RunConfig, machine: Machine, frozen: Frozen, method: Method) -> CachedTokens | None:
    """Tokens that enter the first prompted block, if that is not block 0 and images are not augmented."""
    layer = first_block(method, frozen.vit.depth)
    if not layer or not machine.shortcuts or run.local.augment != "none":
        return None
    folder, limit = machine.data / "features" / f"{frozen.cache_name}-block{layer}", machine.token_cache_gb
    return process_cache.cached(
        "tokens",
        (str(folder), limit, frozen.key),
        lambda: cached_tokens(frozen.vit, frozen.images, layer, run.precision == "bfloat16", folder, limit),
    )


def _facts(
    planned: PlannedRun,
    plugins: Plugins,
    frozen: Frozen,
    split: Split,
    takes_part: Participation,
    method: Method,
    spec: Mapping[str, Param],
    chunk: int,
) -> RunFacts:
    """What every record of the run repeats."""
    run = planned.run

    def words(kind: Kind, block: dict[str, object]) -> str:
        return short_name(block, plugins.classes[kind][str(block["name"])])

    cohorts = np.concatenate([takes_part.candidates(round_) for round_ in range(1, run.rounds + 1)])
    return RunFacts(
        run=planned.name,
        key=planned.key,
        method=run.method["name"],
        label=planned.label,
        family=method.family,
        reference=method.reference,
        dataset=words("dataset", run.dataset),
        partition=words("partition", run.partition),
        aggregation=words("aggregation", run.aggregation),
        backbone=f"{run.backbone.name}@{frozen.vit.image_size}"
        + (f" {run.backbone.pool}" if run.backbone.pool else ""),
        seed=run.seed,
        rounds=run.rounds,
        trained_parameters=sum(param.init.numel() for param in spec.values() if param.trains),
        config_hash=hashlib.sha256(json.dumps(planned.identity, sort_keys=True).encode()).hexdigest()[:16],
        partition_hash=split.hash,
        data_hash=frozen.data_hash,
        backbone_hash=frozen.weights_hash,
        chunk_images=chunk,
        cohort_hash=hashlib.sha256(cohorts.astype("<i8").tobytes()).hexdigest()[:16],
        commit=commit(),
        code=code_hash(plugins.files(planned.identity)),
    )
