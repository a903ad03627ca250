"""What a sweep file can say, as checked blocks, and the runs that it means, each named by what changes its numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from fedbench.plan.plugins import Plugins


class ConfigError(ValueError):
    """One or more mistakes in a sweep file or on the command line; the message lists them all."""


Tracker = Literal["tensorboard", "wandb", "mlflow"]
TRACKERS: tuple[str, ...] = get_args(Tracker)


class Block(BaseModel):
    """A frozen block of the sweep file; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Block):
    """The frozen Vision Transformer that all clients share."""

    name: str = Field("nano", description="`nano` (embedded) or any timm ViT")
    weights: Path | None = Field(None, description="a local safetensors file instead of timm's download")
    image_size: int | None = Field(None, ge=8, description="input size in pixels; the checkpoint's own if not given")


class ClientsConfig(Block):
    """Who takes part."""

    number: int = Field(100, ge=1, description="clients in all")
    per_round: int = Field(10, ge=1, description="cohort size: clients drawn each round")
    held_out: float = Field(0.0, ge=0, description="share (or number, from 1 on) of clients that never train")
    validation: float = Field(0.1, ge=0, lt=1, description="share of each client's training samples kept for selection")


class LocalConfig(Block):
    """A client's local training."""

    epochs: int = Field(1, ge=1, description="passes over its training samples each round, in each phase of the method")
    batch_size: int = Field(32, ge=1, description="samples of one client in a step; its last batch may be smaller")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="of the client; it starts anew each round")
    lr: float = Field(
        0.01, gt=0, description="learning rate of the first round; a method's `..._lr_scale` multiplies it"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate after each round")
    clip: float | None = Field(None, gt=0, description="largest norm of a client's gradient")
    augment: Literal["none", "flip", "crop_flip"] = Field(
        "none", description="of training images: mirrored by chance; crop_flip: also moved by up to an eighth"
    )


class Seeds(Block):
    """Single streams with another seed than the run's, to vary one source of chance alone."""

    partition: int | None = Field(None, description="who holds which samples, and who is held out")
    cohort: int | None = Field(None, description="who takes part in which round")
    init: int | None = Field(None, description="initial weights")
    batches: int | None = Field(None, description="order of samples, augmentation and what else local training draws")


class Machine(Block):
    """How to compute; never part of a run's identity."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    clients: Literal["stacked", "loop"] = Field("stacked", description="loop: the slow twin, one client at a time")
    shortcuts: bool = Field(
        True, description="false: the backbone saves no arithmetic, to see that this changes nothing"
    )
    compile: bool = Field(
        False,
        description="blocks that all clients share by torch.compile: meant for GPUs; on a CPU slower, and needs a C++ compiler",
    )
    pack: bool = Field(
        False,
        description="train runs together that one process has and that differ in seeds, split, clients and learning rate alone",
    )
    token_cache_gb: float = Field(
        4.0,
        ge=0,
        description="disk for the tokens that enter a method's first prompted block, where that is not the first of all",
    )
    chunk_images: int = Field(0, ge=0, description="images in one pass of the backbone; 0: chosen by device and size")
    data: Path = Field(Path("data"), description="folder of datasets and caches")
    track: tuple[Tracker, ...] = Field(
        (), description="trackers that are sent the records as well; nothing needs a network"
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints")


class Cluster(Block):
    """What to ask of the scheduler; never part of a run's identity."""

    timeout_min: int = Field(240, ge=1, description="time limit of a job in minutes; a run may take several jobs")
    gpus: int = Field(0, ge=0, description="GPUs per job")
    cpus: int = Field(1, ge=1, description="cores per job, and threads of a run")
    mem_gb: float | None = Field(None, gt=0, description="memory per job in GB; the cluster's default if not given")
    partition: str | None = Field(None, description="as of sbatch")
    account: str | None = Field(None, description="as of sbatch")
    qos: str | None = Field(None, description="as of sbatch")
    constraint: str | None = Field(None, description="as of sbatch")
    array_parallelism: int = Field(64, ge=1, description="most jobs of an array at once")
    runs_per_job: int = Field(1, ge=1, description="short runs done one after another in one job")
    runs_per_gpu: int = Field(1, ge=1, description="runs side by side on each GPU (without GPUs: in each job)")
    workers: int | None = Field(None, ge=1, description="local: processes at once; one per core or GPU if not given")
    setup: tuple[str, ...] = Field((), description="shell lines that a Slurm job runs first")
    slurm: dict[str, Any] = Field(default_factory=dict, description="further sbatch options, as submitit names them")


class Tune(Block):
    """The same number of trials for every method, each over its own search space; validation data choose."""

    trials: int = Field(8, ge=1, description="runs that look for a method's values in a setting, on the first seed")
    rounds: int | None = Field(None, ge=1, description="of a trial; a run's own if not given")
    search: dict[str, dict[Literal["log", "linear", "choice"], tuple[Any, ...]] | None] = Field(
        default_factory=dict,
        description="ranges that replace a method's own, e.g. {local.lr: {log: [0.001, 1]}}; null: not searched",
    )


class RunConfig(Block):
    """One run: a dataset dealt to clients, a method, a budget, a seed. Plug-in blocks carry all fields with defaults."""

    backbone: BackboneConfig = Field(BackboneConfig(), description="the frozen Vision Transformer")
    dataset: dict[str, Any] = Field(description="which images")
    partition: dict[str, Any] = Field(description="how they are dealt to clients")
    method: dict[str, Any] = Field(description="what is trained; `label:` in it names the row of the tables")
    aggregation: dict[str, Any] = Field(
        default_factory=lambda: {"name": "fedavg"}, description="how the server steps, and what holds clients together"
    )
    seed: int = Field(0, ge=0, description="of every stream of random numbers")
    seeds: Seeds = Field(Seeds(), description="other seeds for single streams")
    rounds: int = Field(100, ge=1, description="rounds of federated training")
    clients: ClientsConfig = Field(ClientsConfig(), description="how many clients, and who takes part")
    local: LocalConfig = Field(LocalConfig(), description="a client's training")
    evaluate_every: int = Field(10, ge=1, description="rounds between two evaluations; the last round always counts")
    precision: Literal["float32", "tf32", "float64", "bfloat16"] = Field(
        "float32",
        description="tf32: float32 whose products a GPU rounds to 10 bits; bfloat16: autocast of the backbone",
    )
    test_data: bool = Field(True, description="whether test data are evaluated; trials of a tuning never touch them")

    def stream(self, name: Literal["partition", "cohort", "init", "batches"]) -> int:
        """The seed of one source of chance: its own where `seeds` gives one, else the run's."""
        own = getattr(self.seeds, name)
        return self.seed if own is None else int(own)


# Keys in which runs that are trained together may differ; everything else decides what is done with a client's row.
PACKED_FREELY = ("seed", "seeds", "partition", "clients", "rounds", "evaluate_every", "test_data")
CLIENT_RECIPE = ("lr", "lr_decay", "clip")  # likewise, keys of `local`


def pack_key(identity: Mapping[str, Any]) -> str:
    """Equal for runs that can be trained together; see `fedbench.run.pack`."""
    fixed = {name: value for name, value in identity.items() if name not in PACKED_FREELY}
    fixed["aggregation"] = identity["aggregation"]["name"]  # what it does at the server is no matter of clients
    fixed["local"] = {name: value for name, value in identity["local"].items() if name not in CLIENT_RECIPE}
    return json.dumps(fixed, sort_keys=True)


@dataclass(frozen=True)
class PlannedRun:
    """A checked run with its name on disk and its names in a table."""

    run: RunConfig
    label: str  # of the method
    identity: dict[str, Any]
    tuning: Mapping[str, Any] = field(default_factory=dict)  # which trial it is, or how its values were chosen

    @cached_property
    def key(self) -> str:
        """8 hex digits of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]

    @cached_property
    def name(self) -> str:
        """The folder's name: ``<method>-<dataset>-<partition>-s<seed>-<key>``."""
        run = self.run
        return f"{run.method['name']}-{run.dataset['name']}-{run.partition['name']}-s{run.seed}-{self.key}"


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    name: str
    runs: tuple[PlannedRun, ...]
    machine: Machine
    cluster: Cluster
    plugins: Plugins
    tune: Tune | None = None
    later: tuple[PlannedRun, ...] = ()  # runs whose values are not chosen yet; see fedbench.plan.tuning

    def on_disk(self, planned: PlannedRun) -> dict[str, Any]:
        """What run.yaml says: enough for a job to run it, and for a reader to know what it was."""
        return {
            "identity": planned.identity,
            "label": planned.label,
            "sweep": self.name,
            "run": _plain(planned.run.model_dump()),
            "machine": _plain(self.machine.model_dump()),
            "cpus": self.cluster.cpus,
            "plugins": [str(folder) for folder in self.plugins.folders],
            **({"tuning": dict(planned.tuning)} if planned.tuning else {}),
        }


def short_name(block: Mapping[str, Any], cls: type) -> str:
    """``name`` or ``name(field=value, ...)`` with the fields that differ from their defaults, and those always told."""
    told = [
        f"{f.name}={block[f.name]}"
        for f in dataclasses.fields(cls)
        if f.name in block
        and (block[f.name] != f.default or f.metadata.get("always_shown"))
        and not isinstance(block[f.name], Path)
    ]
    return str(block["name"]) + (f"({', '.join(told)})" if told else "")


def _plain(value: Any) -> Any:
    """`value` with only what YAML and JSON know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
