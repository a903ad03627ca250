"""Everything of a run that stays the same over its rounds: data and split, frozen backbone, method, trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedbench.vit import backbone
from fedbench.run import cost
from fedbench.base import rng, process_cache
from fedbench import data
from fedbench.run.stacked_model import Cohort
from fedbench.vit.compiled import Compiled
from fedbench.plan.config import Backbone, Machine, PlannedRun, Run, short_name
from fedbench.data import Batches, Ints, Samples, Split
from fedbench.vit.token_cache import entering, first_block
from fedbench.vit.features import data_hash, features
from fedbench.vit.images import Images
from fedbench.run.local import Trainer, idle
from fedbench.method import Method, Param, Report
from fedbench.plan.plugins import Plugins
from fedbench.run.server import Server, parameters
from fedbench.run.stacked import Clients, Stacked


@dataclass(frozen=True)
class Training:
    """A cohort's local training, ready to be done: by itself, or with that of other runs (see `fedbench.run.pack`)."""

    trainer: Trainer
    clients: Tensor  # [K]
    sent: Stacked
    read: Stacked
    batches: Sequence[Batches]  # one a local phase; none for a method without training
    samples: Sequence[int]  # [K]
    lr: float

    def train(self) -> Report:
        """Do it."""
        if not self.batches:
            return idle(self.clients, self.sent, self.samples, self.lr)
        return self.trainer.train(self.sent, self.read, self.batches, self.lr)


@dataclass(frozen=True)
class Setting:
    """What the rounds work with."""

    run: Run
    samples: Samples
    split: Split
    cohort: Cohort
    trainer: Trainer
    server: Server
    multiply_adds: int  # of local training, for a sample and an epoch
    chunk: int  # images in one pass
    facts: dict[str, object]  # what every record of the run repeats

    def cohort_of(self, round_: int) -> Ints:
        """The clients of round `round_` (from 1): a draw without replacement that no method can influence."""
        draw = rng.numpy_stream(self.run.stream("cohort"), "cohort", round_)
        return np.sort(draw.choice(self._eligible, self.run.clients.per_round, replace=False))

    @cached_property
    def _eligible(self) -> Ints:
        return np.flatnonzero(~self.split.held_out)

    def train(self, clients: Ints, lr: float, *stream: int | str, epochs: int | None = None) -> Report:
        """Local training of `clients` from what the server sends each; `stream` names the draws of their batches.

        The report's rows stand in an order of their own: see ``report.clients``.
        """
        return self.task(clients, lr, *stream, epochs=epochs).train()

    def task(self, clients: Ints, lr: float, *stream: int | str, epochs: int | None = None) -> Training:
        """What `train` would do."""
        local, server = self.run.local, self.server
        train: Sequence[Ints] = self.split.train
        trainer = self.trainer
        if epochs is not None:
            trainer = replace(trainer, local=local.model_copy(update={"epochs": epochs}), finetuning=True)
        elif self.cohort.method.pooled:
            train, clients = data.Parts.of([self._pool(clients, *stream)]), np.zeros(1, dtype=np.int64)
        local, seed = trainer.local, self.run.stream("batches")
        batches = [
            data.batches(train, clients, local.batch_size, local.epochs, seed, *stream, phase)
            for phase in range(len(trainer.phases))
        ]
        who = torch.from_numpy(batches[0].clients if batches else clients).to(server.device)
        samples = [len(train[k]) for k in clients]
        return Training(trainer, who, server.send(who), server.read(), batches, samples, lr)

    def _pool(self, clients: Ints, *stream: int | str) -> Ints:
        """As many samples as `clients` hold, drawn from all clients that train: for a method without clients."""
        train = self.split.train
        pool = train.indices[~self.split.held_out[train.owners]]
        draw = rng.numpy_stream(self.run.stream("batches"), "pool", *stream)
        return np.sort(draw.choice(pool, int(train.sizes[clients].sum()), replace=False))


def build(planned: PlannedRun, machine: Machine, found: Plugins) -> Setting:
    """Load, deal and assemble. Raises DataError, BackboneError and what a plug-in raises."""
    run = planned.run
    device = choose_device(machine.device)
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    # By default torch rounds convolutions on a GPU, and those alone: what changes numbers is the run's choice.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.precision == "tf32"
    # What the runs of a pack share is made once; the identity names files by their content.
    source = json.dumps([planned.identity["dataset"], str(machine.data)], sort_keys=True)
    samples = process_cache.once("samples", source, lambda: found.make("dataset", run.dataset).load(machine.data))
    dealt = deal(run, samples, found.make("partition", run.partition))
    frozen = json.dumps([planned.identity["backbone"], str(device), str(dtype), machine.shortcuts], sort_keys=True)
    vit = process_cache.once("backbone", frozen, lambda: backbone.make(**run.backbone.model_dump()).to(device, dtype))
    if not machine.shortcuts:
        vit.lean = vit.plain = False
    images = process_cache.once(
        "images", (source, frozen), lambda: Images(samples.images, vit.image_size, vit.mean, vit.std, device, dtype)
    )
    method, aggregation = found.make("method", run.method), found.make("aggregation", run.aggregation)

    counts = torch.from_numpy(dealt.class_counts(samples.labels, samples.num_classes)).float()
    held_out = int(dealt.held_out.sum())
    spec = parameters(method, aggregation, cost.task_of(vit, samples.num_classes, counts, run.stream("init"), held_out))
    _fits(method, spec)
    per_pass = cost.one_pass(method, spec, vit)
    chunk = max(1, (machine.chunk_images or cost.chunk_images(per_pass, device)) >> machine.halvings)
    weights = process_cache.once("weights", frozen, vit.weights_hash)
    contents = process_cache.once("contents", source, lambda: data_hash(samples))
    cached = f"{weights}-{contents}-{vit.image_size}-{run.precision}"
    query = (
        process_cache.once("features", (cached, frozen), lambda: features(vit, images, cached, machine.data))
        if method.reads_features(vit.depth)
        else None
    )
    bfloat16, layer = run.precision == "bfloat16", first_block(method, vit.depth)
    where = machine.data / "features" / f"{cached}-block{layer}"
    known = (
        process_cache.once(
            "entering",
            (str(where), machine.token_cache_gb, frozen),
            lambda: entering(vit, images, layer, bfloat16, where, machine.token_cache_gb),
        )
        if layer and machine.shortcuts and run.local.augment == "none"
        else None
    )
    labels = torch.from_numpy(np.array(samples.labels)).to(device)
    mode: Clients = machine.clients
    pieces = max(1, round(run.local.batch_size / chunk))
    together, piece = max(1, chunk // run.local.batch_size), -(-run.local.batch_size // pieces)
    fast = Compiled(together * piece) if machine.compile else None
    cohort = Cohort(method, spec, vit, images, labels, query, mode, bfloat16, fast, known)
    trainer = Trainer(cohort, aggregation, run.local, together, piece)
    server = Server(method, aggregation, spec, run.clients.number, device, dtype)

    def block(kind: str, value: dict[str, object]) -> str:
        return short_name(value, found.classes[kind][str(value["name"])])  # type: ignore[index]

    facts: dict[str, object] = {
        "method": run.method["name"],
        "label": planned.label,
        "family": method.family,
        "reference": method.reference,
        "dataset": block("dataset", run.dataset),
        "partition": block("partition", run.partition),
        "aggregation": block("aggregation", run.aggregation),
        "backbone": backbone_name(run.backbone, vit.image_size),
        "seed": run.seed,
        "rounds": run.rounds,
        "trained_parameters": sum(param.init.numel() for param in spec.values() if param.trains),
        "config_hash": hashlib.sha256(json.dumps(planned.identity, sort_keys=True).encode()).hexdigest()[:16],
        "partition_hash": dealt.hash,
        "data_hash": contents,
        "backbone_hash": weights,
        "chunk_images": chunk,
    }
    setting = Setting(run, samples, dealt, cohort, trainer, server, cost.training(method, spec, vit), chunk, facts)
    who = np.concatenate([setting.cohort_of(r) for r in range(1, run.rounds + 1)])
    facts["cohort_hash"] = hashlib.sha256(who.astype("<i8").tobytes()).hexdigest()[:16]
    return setting


def deal(run: Run, samples: Samples, partitioner: data.SplitSource) -> Split:
    """The split that a run trains on, and that `fedbench data split` shows. Raises DataError."""
    clients = run.clients
    return data.split(
        samples, partitioner, clients.number, clients.held_out, clients.validation, run.stream("partition")
    )


def _fits(method: Method, spec: Mapping[str, Param]) -> None:
    """Raise ValueError for options that do not go together."""
    local = sorted(name for name, param in spec.items() if param.home == "local")
    if method.pooled and local:
        raise ValueError(f"a method without clients has no values of clients, but here are {', '.join(local)}")
    if method.finetune_epochs and not any(param.trains for param in spec.values()):
        raise ValueError("finetune_epochs: this method trains nothing")


def backbone_name(block: Backbone, image_size: int) -> str:
    """``name@pixels``, as tables and figures show it."""
    return f"{block.name}@{image_size}"


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto: the first GPU where there is one. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"machine.device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"machine.device is {name!r}, but torch finds no GPU")
    return device
