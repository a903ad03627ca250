"""All figures of one case: every method and every contender on the same images and weights, in turn."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedbench.bench import breakdown, clock
from fedbench.bench.cases import CASES, World
from fedbench.bench.contenders import Prompted, bare_evaluation, bare_training, fastest, published
from fedbench.plan.plugins import Plugins
from fedbench.run import cost, evaluation
from fedbench.run.experiment import Experiment

BARE, PUBLISHED, LOOP, COMPILED = "bare loop", "published loop", "one by one", "compiled"
MEMORY = {"cuda": 24 << 30, "cpu": 4 << 30}  # bytes that a round of 10 clients x 32 images should stay within


@dataclass(frozen=True)
class Asked:
    """What the command line asks of each case."""

    methods: Sequence[dict[str, Any]]  # {"name": ..., fields}
    device: torch.device
    precision: str
    repeat: int
    found: Plugins
    compile: bool  # the first method by torch.compile as well


def case(name: str, asked: Asked, profile: Path | None = None) -> dict[str, Any]:
    """Measure one of `CASES`; `profile` is where the first method's profile goes.

    ``methods`` {name: {training, evaluation, round}} and ``contenders`` {name: {training, evaluation}}; rates in images and
    multiply-adds per second, memory in bytes, ``times_*`` how much faster than that contender, ``fraction`` the share of the
    measured matrix product rate. A method without training has none, and one that never enters the backbone no fraction.
    Raises ConfigError, and what building a run raises.
    """
    with tempfile.TemporaryDirectory() as root:
        world = World.make(CASES[name], Path(root))
        settings = {
            str(block["name"]): world.experiment(block, asked.found, str(asked.device), asked.precision)
            for block in asked.methods
        }
        first = next(iter(settings.values()))
        work, batches = _others(world, first, asked)
        one_by_one = world.experiment(asked.methods[0], asked.found, str(asked.device), asked.precision, clients="loop")
        if first.trainer.phases:
            work[LOOP, "training"] = _training(one_by_one)
        if asked.compile:
            compiled = world.experiment(asked.methods[0], asked.found, str(asked.device), asked.precision, compile=True)
            breakdown.whole_round(compiled, world.root)  # which compiles
            if compiled.trainer.phases:
                work[COMPILED, "training"] = _training(compiled)
            work[COMPILED, "evaluation"] = _evaluation(compiled)
        for method, experiment in settings.items():
            breakdown.whole_round(experiment, world.root)  # statistics, caches, chosen sizes: once in a run
            if experiment.trainer.phases:
                work[method, "training"] = _training(experiment)
            work[method, "evaluation"] = _evaluation(experiment)
        peaks = {key: clock.peak(one, asked.device) for key, one in work.items()}
        seconds = _in_turn(work, asked)
        dtype = torch.bfloat16 if asked.precision == "bfloat16" else torch.float32
        rate = max(clock.matrix_rate(asked.device, dtype, world.case.matrix) for _ in range(asked.repeat))
        told: dict[str, dict[str, Any]] = {}
        for (who, what), times in seconds.items():
            middle = statistics.median(times)
            told.setdefault(who, {})[what] = {
                "images_per_second": world.case.images / middle,
                "seconds": middle,
                "peak_memory_bytes": peaks[who, what],
                **{
                    f"times_{other.replace(' ', '_')}": clock.times_faster(times, seconds[other, what])
                    for other in (BARE, PUBLISHED)
                    if (other, what) in seconds and other != who
                },
            }
        for method, experiment in settings.items():
            for what, multiply_adds in _arithmetic(experiment).items():
                if multiply_adds and what in told[method]:
                    told[method][what]["multiply_adds_per_image"] = multiply_adds
                    told[method][what]["fraction"] = multiply_adds * told[method][what]["images_per_second"] / rate
            told[method]["round"] = breakdown.seconds(experiment, world.root, min(3, asked.repeat))
        if profile:
            breakdown.profile(first, world.root, profile)
    return {
        "case": name,
        "images": world.case.images,
        "clients": world.case.clients,
        "batch_size": world.case.batch_size,
        "chunk_images": first.chunk,
        "bare_batch": batches,
        "memory_limit_bytes": MEMORY[asked.device.type],
        "matrix_multiply_adds_per_second": rate,
        "methods": {who: told[who] for who in settings},
        "contenders": {who: figures for who, figures in told.items() if who not in settings},
    }


def _others(
    world: World, first: Experiment, asked: Asked
) -> tuple[dict[tuple[str, str], Callable[[], Any]], dict[str, int]]:
    """The contenders' work by (who, what), and the batch sizes at which the bare loop is fastest."""
    device, images = asked.device, first.model.images
    mine = torch.cat([torch.from_numpy(part) for part in world.parts]).to(device)
    pixels, labels = images.batch(mine), first.model.labels[mine]
    half = asked.precision == "bfloat16"
    torch.manual_seed(0)
    model = Prompted(world.vit()).to(device)
    train_batch, training = fastest(lambda b: bare_training(model, pixels, labels, b, half), len(pixels), device)
    eval_batch, evaluated = fastest(lambda b: bare_evaluation(model, pixels, b, half), len(pixels), device)
    vit = first.model.backbone
    slow = published(world, vit.mean, vit.std, device)
    work: dict[tuple[str, str], Callable[[], Any]] = {
        (BARE, "training"): training,
        (PUBLISHED, "training"): slow,
        (BARE, "evaluation"): evaluated,
    }
    return work, {"training": train_batch, "evaluation": eval_batch}


def _training(experiment: Experiment) -> Callable[[], Any]:
    """Local training of the round's clients, from what the server sends to what it gets."""
    cohort = experiment.cohort_of(1)
    return lambda: experiment.train(cohort, experiment.run.local.lr, 1)


def _evaluation(experiment: Experiment) -> Callable[[], Any]:
    """An evaluation as the run has it, of all clients on their test images."""
    return lambda: evaluation.evaluate(experiment)


def _in_turn(work: dict[tuple[str, str], Callable[[], Any]], asked: Asked) -> dict[tuple[str, str], list[float]]:
    names = {" ".join(key): key for key in work}
    seconds = clock.alternate({name: work[key] for name, key in names.items()}, asked.repeat, asked.device)
    return {key: seconds[name] for name, key in names.items()}


def _arithmetic(experiment: Experiment) -> dict[str, int]:
    """Multiply-adds of one image: of local training, and of an evaluation's forward pass (0 where clients fine-tune first)."""
    model = experiment.model
    forward = cost.one_pass(model.method, model.spec, model.backbone).forward
    return {"training": experiment.multiply_adds, "evaluation": 0 if model.method.finetune_epochs else forward}
