"""The configuration of a sweep as checked blocks, and its runs, each named after everything that changes its numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedbench.plan.plugins import Plugins


class ConfigError(ValueError):
    """Mistakes in a sweep file or on the command line. The message lists all of them."""


Tracker = Literal["tensorboard", "wandb", "mlflow"]
TRACKERS: tuple[str, ...] = get_args(Tracker)


class Block(BaseModel):
    """An immutable block of the sweep file. Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Block):
    """The frozen Vision Transformer that all clients share."""

    name: str = Field(
        "nano",
        description="`nano` or its control `nano_plain` (embedded), any timm ViT, or a vision-language model: `clip_nano` "
        "(embedded), `open_clip/MODEL.TAG`, or `two_towers` with `weights:`",
    )
    weights: Path | None = Field(
        None, description="local weights (.safetensors, .pth or .bin) instead of timm's download"
    )
    image_size: int | None = Field(None, ge=8, description="input size in pixels; default: the checkpoint's own size")
    pool: Literal["token", "avg"] | None = Field(
        None,
        description="how the backbone is read: `token`, its CLS token, or `avg`, the mean of its patch tokens; default: as "
        "timm's model, which may also have attention pooling",
    )
    template: str | None = Field(
        None,
        description="text of a class in a vision-language model, with `{}` in place of its name; default: the model's own",
    )

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str | None) -> str | None:
        if value is not None and value.count("{}") != 1:
            raise ValueError("expected a text with one {} in place of the class name")
        return value


class ClientsConfig(Block):
    """The number of clients, and which of them take part."""

    number: int = Field(100, ge=1, description="total number of clients")
    per_round: int = Field(10, ge=1, description="cohort size: clients drawn in each round")
    held_out: float = Field(
        0.0, ge=0, description="clients that never train: a share below 1, or a number of clients from 1 on"
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="share of each client's training samples set aside for validation"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability that a client of a cohort receives values and sends nothing; one always does",
    )
    stragglers: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a client of a cohort trains for fewer epochs, drawn from 1 to `local.epochs` - 1",
    )
    available: Path | None = Field(
        None,
        description="CSV file with the columns round and client: who is available in which round; its rounds repeat",
    )
    draw: Literal["uniform", "loss"] = Field(
        "uniform",
        description="loss: of `candidates` clients, drawn by their numbers of samples, those with the largest training loss "
        "when they last took part (Cho et al. 2020)",
    )
    candidates: int | None = Field(
        None, ge=1, description="clients of which `draw: loss` chooses a cohort; default: twice `per_round`"
    )

    shots: int | None = Field(
        None, ge=1, description="most training samples that a client keeps of each class (few-shot); default: all"
    )
    novel: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the classes, the last ones, of which clients have test samples only (base-to-novel); needs a "
        "method with text",
    )

    @field_validator("held_out")
    @classmethod
    def _whole_from_one_on(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("expected a share below 1 or a whole number of clients")
        return value


class LocalConfig(Block):
    """A client's local training."""

    epochs: int = Field(
        1, ge=1, description="passes over the client's training samples per round, in each phase of the method"
    )
    batch_size: int = Field(32, ge=1, description="samples per client and step; a client's last batch may be smaller")
    optimizer: Literal["sgd", "adam", "adamw"] = Field(
        "sgd", description="the clients' optimizer; its state is reset every round"
    )
    lr: float = Field(
        0.01, gt=0, description="learning rate of the first round; a method's `..._lr_scale` multiplies it"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the optimizer")
    lr_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate after each round; needs `schedule: exponential`"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of a client's gradient; default: no clipping")
    augment: Literal["none", "flip", "crop_flip"] = Field(
        "none",
        description="augmentation of training images. flip: random horizontal flips; crop_flip: also random shifts by up "
        "to an eighth of the image",
    )
    schedule: Literal["constant", "exponential", "cosine", "warmup"] = Field(
        "exponential",
        description="learning rate over the rounds. exponential: times `lr_decay` after each round, so constant by default; "
        "cosine: from `lr` to zero along half a cosine; warmup: linearly up to `lr`, then as cosine",
    )
    warmup_rounds: int = Field(
        5, ge=1, description="rounds in which the learning rate rises; needs `schedule: warmup` and more rounds"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each label's mass that is spread evenly over all classes, in the cross entropy of training",
    )


class Seeds(Block):
    """Override the seed of one random stream, to vary one source of randomness."""

    partition: int | None = Field(None, ge=0, description="seed of the split and of the choice of held-out clients")
    cohort: int | None = Field(None, ge=0, description="seed of the cohorts")
    init: int | None = Field(None, ge=0, description="seed of the initial weights")
    batches: int | None = Field(
        None, ge=0, description="seed of local training: sample order, augmentation and other draws"
    )


class Machine(Block):
    """How a run is computed. Never part of its identity."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto: the first GPU if there is one")
    clients: Literal["stacked", "loop"] = Field(
        "stacked", description="stacked: all clients of a cohort in one graph; loop: one client at a time, slower"
    )
    shortcuts: bool = Field(
        True, description="false: compute the backbone without shortcuts, to check that they change nothing"
    )
    compile: bool = Field(
        False,
        description="compile the backbone's shared blocks with torch.compile. Meant for GPUs; slower on a CPU, where it "
        "needs a C++ compiler",
    )
    graphs: bool = Field(
        False,
        description="replay the passes of local steps as CUDA graphs. Meant for small ViTs on a GPU; no effect on a CPU",
    )
    pack: bool = Field(
        False,
        description="train the runs of a process together if they differ only in seeds, split, clients and learning rate",
    )
    token_cache_gb: float = Field(
        4.0,
        ge=0,
        description="disk budget in GB for cached activations before the first prompted block, if it is not block 0",
    )
    chunk_images: int = Field(
        0, ge=0, description="images per pass of the backbone; 0: chosen by device and image size"
    )
    data: Path = Field(Path("data"), description="folder of datasets and caches")
    track: tuple[Tracker, ...] = Field(
        (), description="experiment trackers that also receive the records; none needs a network"
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints in seconds")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return value


class Cluster(Block):
    """What to request from the scheduler. Never part of a run's identity."""

    timeout_min: int = Field(
        240,
        ge=1,
        description="time limit of a job: minutes, or a time as Slurm reads it (`minutes:seconds`, "
        "`hours:minutes:seconds`, `days-hours`, ...); a run may take several jobs",
    )
    gpus: int = Field(0, ge=0, description="GPUs per job")
    cpus: int = Field(1, ge=1, description="cores per job, and threads of a run")
    mem_gb: float | None = Field(None, gt=0, description="memory per job in GB; default: the cluster's own")
    partition: str | None = Field(None, description="partition to submit to (sbatch --partition)")
    account: str | None = Field(None, description="account to charge (sbatch --account)")
    qos: str | None = Field(None, description="quality of service (sbatch --qos)")
    constraint: str | None = Field(None, description="required node features (sbatch --constraint)")
    array_parallelism: int = Field(64, ge=1, description="most jobs of an array that run at once")
    runs_per_job: int = Field(
        1, ge=1, description="runs per job, one after another; runs with one training count as one"
    )
    runs_per_gpu: int = Field(1, ge=1, description="runs side by side on each GPU; without GPUs: in each job")
    workers: int | None = Field(
        None, ge=1, description="`--cluster local`: processes at once; default: one per GPU or core"
    )
    setup: tuple[str, ...] = Field((), description="shell lines that a Slurm job runs first")
    slurm: dict[str, Any] = Field(
        default_factory=dict, description="further sbatch options, with the names that submitit uses"
    )

    @field_validator("timeout_min", mode="before")
    @classmethod
    def _slurm_time(cls, value: Any) -> Any:
        return slurm_minutes(value) if isinstance(value, str) else value


def slurm_minutes(text: str) -> int:
    """The minutes, rounded up, of a time limit as `sbatch --time` reads it.

    Forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and days-hours:minutes:seconds
    (man page of sbatch). Raises ValueError.
    """
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text.strip())
    if match is None:
        raise ValueError("expected minutes, minutes:seconds, hours:minutes:seconds, days-hours or days-hours:minutes")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:
        parts = [0, *parts]  # minutes[:seconds]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)


class Tune(Block):
    """Tuning with the same budget for every method. Each method has its own ranges, and validation accuracy decides."""

    trials: int = Field(
        8, ge=1, description="trials per method and setting; the first uses the values of the sweep file"
    )
    rounds: int | None = Field(
        None,
        ge=1,
        description="rounds of the first trials; the better half continues to twice as many, and so on up to the run's "
        "rounds, where the choice is made. Default: all trials have the run's rounds",
    )
    seeds: int = Field(
        3,
        ge=1,
        description="seeds on which the three best trials are compared, at most those of the runs; 1: the first seed decides",
    )
    per_seed: bool = Field(
        False, description="true: repeat the search for every seed; false: search on the first seed, use for all"
    )
    search: dict[str, dict[Literal["log", "linear", "choice"], tuple[Any, ...]] | None] = Field(
        default_factory=dict,
        description="ranges that replace the methods' own, such as {local.lr: {log: [0.001, 1]}}; null: not searched",
    )


class RunConfig(Block):
    """One run: a dataset split over clients, a method, a budget, a seed. Plug-in blocks hold all fields, including defaults."""

    backbone: BackboneConfig = Field(BackboneConfig(), description="the frozen Vision Transformer")
    dataset: dict[str, Any] = Field(description="the images")
    partition: dict[str, Any] = Field(description="how samples are split over clients")
    method: dict[str, Any] = Field(description="what is trained; its `label:` names the row in tables")
    aggregation: dict[str, Any] = Field(
        default_factory=lambda: {"name": "fedavg"}, description="how the server combines the clients' updates"
    )
    seed: int = Field(0, ge=0, description="seed of every random stream")
    seeds: Seeds = Field(Seeds(), description="overrides of the seed for single random streams")
    rounds: int = Field(
        100,
        ge=1,
        description="rounds of federated training. A run continues a finished shorter run of the same results "
        "folder if nothing else differs and no schedule depends on the number of rounds",
    )
    clients: ClientsConfig = Field(ClientsConfig(), description="the number of clients, and which of them take part")
    local: LocalConfig = Field(LocalConfig(), description="a client's local training")
    evaluate_every: int = Field(
        10, ge=1, description="rounds between two evaluations; the last round is always evaluated"
    )
    precision: Literal["float32", "tf32", "float64", "bfloat16"] = Field(
        "float32",
        description="tf32: float32 with matrix products rounded to 10 bits on a GPU; bfloat16: autocast of the backbone",
    )
    metrics: tuple[Any, ...] = Field(
        (), description="further numbers of each evaluation of test data: metric plug-ins, by name or as `{name: ...}`"
    )
    test_data: bool = Field(True, description="whether test data are evaluated; trials of a tuning never use them")

    def stream(self, name: Literal["partition", "cohort", "init", "batches"]) -> int:
        """The seed of one random stream: the override in `seeds` if there is one, else the run's seed."""
        override = getattr(self.seeds, name)
        return self.seed if override is None else int(override)


@dataclass(frozen=True)
class PlannedRun:
    """A checked run, with the name of its folder and of its method in tables."""

    run: RunConfig
    label: str  # the method's name in tables
    identity: dict[str, Any]
    tuning: Mapping[str, Any] = field(default_factory=dict)  # see `fedbench.plan.tuning`

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
    later: tuple[PlannedRun, ...] = ()  # runs that wait for the tuning to choose their values

    def on_disk(self, planned: PlannedRun) -> dict[str, Any]:
        """The content of run.yaml: all that a job needs to do the run, and that a reader needs to know about it."""
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
    """``name`` or ``name(field=value, ...)`` with the fields that differ from their defaults or are always shown.

    Files and folders are shown without their parent folders.
    """
    values = {name: value.name if isinstance(value, Path) else value for name, value in block.items()}
    shown = [
        f"{f.name}={values[f.name]}"
        for f in dataclasses.fields(cls)
        if f.name in block and (block[f.name] != f.default or f.metadata.get("always_shown"))
    ]
    return str(block["name"]) + (f"({', '.join(shown)})" if shown else "")


def _plain(value: Any) -> Any:
    """`value` with the types that YAML and JSON have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
