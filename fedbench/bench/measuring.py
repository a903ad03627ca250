"""All measurements of one case: methods and baselines take turns on the same images and weights."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedbench.bench import breakdown, clock
from fedbench.bench.baselines import Prompted, bare_evaluation, bare_training, fastest, published
from fedbench.bench.cases import CASES, World
from fedbench.plan.plugins import Plugins
from fedbench.run import cost, evaluation, pack
from fedbench.run.experiment import Experiment

BARE, PUBLISHED, LOOP, COMPILED = "bare loop", "published loop", "one by one", "compiled"
GRAPHS, PACK = "graphs", "pack"
RUNS = 4  # runs of a pack
MEMORY = {"cuda": 24 << 30, "cpu": 4 << 30}  # bytes: the goal for a round of 10 clients x 32 images


@dataclass(frozen=True)
class MeasureOptions:
    """The options of the command line that hold for all cases."""

    methods: Sequence[dict[str, Any]]  # {"name": ..., fields}
    device: torch.device
    precision: str
    repeat: int
    plugins: Plugins
    compile: bool  # also measure the first method with torch.compile
    graphs: bool = False  # and with CUDA graphs
    pack: bool = False  # and the training of `RUNS` runs as one pack


def case(name: str, options: MeasureOptions, profile: Path | None = None) -> dict[str, Any]:
    """Measure the case `name` of `CASES`; `profile` is the file for the first method's profile.

    ``methods`` {name: {training, evaluation, round}} and ``baselines`` {name: {training, evaluation}}; rates in images and
    multiply-adds per second, memory in bytes, ``times_*`` the speed relative to that baseline, ``fraction`` the share of
    the measured matrix product rate. Methods that train nothing have no ``training``, and methods that never run the
    backbone no ``fraction``. ``compile_error`` and ``graphs_error`` say why torch.compile or a capture failed, if it did.
    Raises ConfigError, and any exception of building a run.
    """
    with tempfile.TemporaryDirectory() as root:
        world = World.make(CASES[name], Path(root))
        experiments = {
            str(block["name"]): world.experiment(block, options.plugins, str(options.device), options.precision)
            for block in options.methods
        }
        first = next(iter(experiments.values()))
        work, batches, errors = _work(world, experiments, options)
        peaks = {key: clock.peak(workload, options.device) for key, workload in work.items()}
        seconds = _alternating_seconds(work, options)
        dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        rate = max(clock.matrix_rate(options.device, dtype, world.case.matrix) for _ in range(options.repeat))
        figures = _figures(world.case.images, seconds, peaks)
        for method, experiment in experiments.items():
            _add_arithmetic(figures[method], experiment, rate)
            figures[method]["round"] = breakdown.seconds(experiment, world.root, min(3, options.repeat))
        if profile:
            breakdown.profile(first, world.root, profile)
    return {
        "case": name,
        "images": world.case.images,
        "clients": world.case.clients,
        "batch_size": world.case.batch_size,
        "chunk_images": first.chunk,
        "bare_batch": batches,
        "memory_limit_bytes": MEMORY[options.device.type],
        "matrix_multiply_adds_per_second": rate,
        **errors,
        "methods": {who: figures[who] for who in experiments},
        "baselines": {who: measured for who, measured in figures.items() if who not in experiments},
    }


def _work(
    world: World, experiments: Mapping[str, Experiment], options: MeasureOptions
) -> tuple[dict[tuple[str, str], Callable[[], Any]], dict[str, int], dict[str, str]]:
    """The workloads by who and what, the bare loop's fastest batch sizes, and why a machine option failed.

    A round of each method warms up: statistics are reported and caches filled.
    """
    first = next(iter(experiments.values()))
    work, batches = _baselines(world, first, options)
    device = str(options.device)
    one_by_one = world.experiment(options.methods[0], options.plugins, device, options.precision, clients="loop")
    if first.trainer.phases:
        work[LOOP, "training"] = _training(one_by_one)
    errors = _add_machine_options(work, world, options) if first.trainer.phases else {}
    for method, experiment in experiments.items():
        breakdown.whole_round(experiment, world.root)
        if experiment.trainer.phases:
            work[method, "training"] = _training(experiment)
        work[method, "evaluation"] = _evaluation(experiment)
    return work, batches, errors


def _figures(
    images: int, seconds: Mapping[tuple[str, str], Sequence[float]], peaks: Mapping[tuple[str, str], Any]
) -> dict[str, dict[str, Any]]:
    """{who: {what: rate, seconds, peak memory and speeds relative to baselines}} of workloads on `images` images."""
    figures: dict[str, dict[str, Any]] = {}
    for (who, what), times in seconds.items():
        middle = statistics.median(times)
        figures.setdefault(who, {})[what] = {
            "images_per_second": images * (RUNS if who == PACK else 1) / middle,
            "seconds": middle,
            "peak_memory_bytes": peaks[who, what],
            **{
                f"times_{other.replace(' ', '_')}": clock.times_faster(times, seconds[other, what])
                for other in (BARE, PUBLISHED)
                if (other, what) in seconds and other != who
            },
        }
    return figures


def _add_arithmetic(figures: dict[str, Any], experiment: Experiment, rate: float) -> None:
    """Add a method's multiply-adds of an image, and their share of the matrix product `rate` per second."""
    for what, multiply_adds in _arithmetic(experiment).items():
        if multiply_adds and what in figures:
            figures[what]["multiply_adds_per_image"] = multiply_adds
            figures[what]["fraction"] = multiply_adds * figures[what]["images_per_second"] / rate


def _add_machine_options(
    work: dict[tuple[str, str], Callable[[], Any]], world: World, options: MeasureOptions
) -> dict[str, str]:
    """Add the first method with the `machine:` options that are wanted to `work`. Return why one of them fails here."""
    errors = {}

    def experiment(**machine: Any) -> Experiment:
        return world.experiment(options.methods[0], options.plugins, str(options.device), options.precision, **machine)

    if options.compile:
        compiled = experiment(compile=True)
        breakdown.whole_round(compiled, world.root)  # compiles the blocks
        if compiled.model.compiled is not None and compiled.model.compiled.error is not None:
            errors["compile_error"] = f"torch.compile fails on this machine: {compiled.model.compiled.error}"
        else:
            work[COMPILED, "training"] = _training(compiled)
            work[COMPILED, "evaluation"] = _evaluation(compiled)
    if options.graphs:
        graphed = experiment(graphs=True)
        for _ in range(2):  # the second round captures what the first one has seen
            breakdown.whole_round(graphed, world.root)
        graphs = graphed.trainer.graphs
        if graphs is None or not graphs.replays:
            why = "the device has none" if graphs is None else graphs.error or "no step came twice"
            errors["graphs_error"] = f"CUDA graphs are not used: {why}"
        else:
            work[GRAPHS, "training"] = _training(graphed)
    if options.pack:
        alone = experiment()
        trainings = [alone.prepare(alone.cohort_of(1), alone.run.local.lr, run) for run in range(RUNS)]
        work[PACK, "training"] = lambda: pack.train_together(trainings)
    return errors


def _baselines(
    world: World, first: Experiment, options: MeasureOptions
) -> tuple[dict[tuple[str, str], Callable[[], Any]], dict[str, int]]:
    """The baselines' workloads by (name, training | evaluation), and the batch sizes at which the bare loop is fastest."""
    device, images = options.device, first.model.images
    index = torch.cat([torch.from_numpy(part) for part in world.parts]).to(device)
    pixels, labels = images.batch(index), first.model.labels[index]
    bfloat16 = options.precision == "bfloat16"
    torch.manual_seed(0)
    model = Prompted(world.vit()).to(device)
    train_batch, training = fastest(lambda b: bare_training(model, pixels, labels, b, bfloat16), len(pixels), device)
    eval_batch, evaluated = fastest(lambda b: bare_evaluation(model, pixels, b, bfloat16), len(pixels), device)
    vit = first.model.backbone
    published_epoch = published(world, vit.mean, vit.std, device)
    work: dict[tuple[str, str], Callable[[], Any]] = {
        (BARE, "training"): training,
        (PUBLISHED, "training"): published_epoch,
        (BARE, "evaluation"): evaluated,
    }
    return work, {"training": train_batch, "evaluation": eval_batch}


def _training(experiment: Experiment) -> Callable[[], Any]:
    """Local training of the first round's clients."""
    cohort = experiment.cohort_of(1)
    return lambda: experiment.train(cohort, experiment.run.local.lr, 1)


def _evaluation(experiment: Experiment) -> Callable[[], Any]:
    """An evaluation of all clients on their test images."""
    return lambda: evaluation.evaluate(experiment)


def _alternating_seconds(
    work: dict[tuple[str, str], Callable[[], Any]], options: MeasureOptions
) -> dict[tuple[str, str], list[float]]:
    names = {" ".join(key): key for key in work}
    seconds = clock.alternate({name: work[key] for name, key in names.items()}, options.repeat, options.device)
    return {key: seconds[name] for name, key in names.items()}


def _arithmetic(experiment: Experiment) -> dict[str, int]:
    """Multiply-adds of one image in local training, and in an evaluation (0 with cached features or fine-tuning)."""
    model = experiment.model
    forward = cost.one_pass(model.method, model.spec, model.backbone).forward
    uncached = model.method.touches(model.backbone.depth) and not model.method.finetune_epochs
    return {"training": experiment.image_cost.training, "evaluation": forward if uncached else 0}
