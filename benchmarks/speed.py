"""Speed as ratios, measured in one process: fedbench's local training and evaluation against a bare PyTorch loop.

The bare loop trains one model of the same method on tensors that are already decoded, resized and normalised, at the batch
size at which it is fastest; its forward pass alone is the measure of evaluation. Both stand beside the rate at which this
machine multiplies matrices. Rounds of all contenders alternate, so that a change in the machine's mood hits them alike,
and the median ratio is told. Usage: ``python -m benchmarks.speed [--out FILE] [--repeat N] [--device D] [case ...]``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedbench import backbone, cost, data, evaluation, measure
from fedbench.backbone import Backbone
from fedbench.cohort import Cohort
from fedbench.config import Local
from fedbench.images import Images
from fedbench.local import Trainer
from fedbench.method import Task
from fedbench.plugins import plugins
from fedbench.server import Server, parameters

CASES = {
    "nano@32": ("nano", None, 1024),
    "vit_tiny@96": ("vit_tiny_patch16_224", 96, 256),
    "vit_tiny@224": ("vit_tiny_patch16_224", 224, 128),
}
CLIENTS, BATCH, CLASSES, PROMPTS = 8, 32, 100, 8
BARE_BATCHES = (16, 32, 64, 128, 256)


def matrix_rate(device: torch.device, seconds: float = 1.0) -> float:
    """Multiply-adds per second of a large float32 matrix product, the best of several."""
    a = torch.randn(2048, 2048, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = max(best, 2048**3 / timed(lambda: a @ a, device))
    return best


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bare_training(vit: Backbone, pixels: torch.Tensor, labels: torch.Tensor, batch: int) -> Callable[[], int]:
    """One pass over `pixels` [N, 3, S, S] by a plain loop: VPT-shallow, SGD with momentum, one model."""
    inner, device = vit.vit, pixels.device
    prompt = torch.zeros(PROMPTS, vit.width, device=device).uniform_(-0.1, 0.1).requires_grad_()
    head = torch.nn.Linear(vit.width, CLASSES).to(device)
    optimizer = torch.optim.SGD([prompt, *head.parameters()], lr=0.01, momentum=0.9)

    def epoch() -> int:
        for start in range(0, len(pixels), batch):
            x = inner._pos_embed(inner.patch_embed(pixels[start : start + batch]))
            x = torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1:]], 1)
            loss = F.cross_entropy(head(inner.norm(inner.blocks(x))[:, 0]), labels[start : start + batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(pixels)

    return epoch


def bare_forward(vit: Backbone, pixels: torch.Tensor, batch: int) -> Callable[[], int]:
    """One pass over `pixels` without gradients, with the same prompts."""
    inner = vit.vit
    prompt, head = (
        torch.zeros(PROMPTS, vit.width, device=pixels.device),
        torch.nn.Linear(vit.width, CLASSES).to(pixels.device),
    )

    @torch.inference_mode()
    def epoch() -> int:
        for start in range(0, len(pixels), batch):
            x = inner._pos_embed(inner.patch_embed(pixels[start : start + batch]))
            x = torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1:]], 1)
            head(inner.norm(inner.blocks(x))[:, 0]).argmax(-1)
        return len(pixels)

    return epoch


def fastest(
    make: Callable[[int], Callable[[], int]], count: int, device: torch.device
) -> tuple[int, Callable[[], int]]:
    """The batch size, of those that divide the work, at which a bare loop is fastest."""
    sizes = [size for size in BARE_BATCHES if size <= count]
    epochs = {size: make(size) for size in sizes}
    for epoch in epochs.values():
        epoch()
    best = min(sizes, key=lambda size: min(timed(epochs[size], device) for _ in range(2)))
    return best, epochs[best]


def case(name: str, device: torch.device, repeat: int) -> dict[str, Any]:
    """All figures of one backbone and size."""
    model, size, count = CASES[name]
    vit = backbone.make(model, image_size=size, pretrained=False).to(device)
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, count)
    images = Images(
        draw.integers(0, 256, (count, vit.image_size, vit.image_size, 3), dtype=np.uint8),
        vit.image_size, vit.mean, vit.std, device, torch.float32,
    )  # fmt: skip
    train = tuple(np.array_split(np.arange(count), CLIENTS))
    counts = torch.from_numpy(np.stack([np.bincount(labels[part], minlength=CLASSES) for part in train])).float()
    found = plugins()
    method, aggregation = (
        found.classes["method"]["fedvpt"](prompt_length=PROMPTS),
        found.classes["aggregation"]["fedavg"](),
    )
    spec = parameters(method, aggregation, Task(CLASSES, CLIENTS, vit.width, vit.depth, vit.patch_size, counts, seed=0))
    per_image = cost.one_pass(method, spec, vit)
    chunk = cost.chunk_images(per_image, device)
    cohort = Cohort(method, spec, vit, images, torch.from_numpy(labels).to(device), None)
    server = Server(method, aggregation, spec, CLIENTS, device, torch.float32)
    local = Local(epochs=1, batch_size=BATCH, lr=0.01)
    trainers = {
        "stacked": Trainer(
            cohort, aggregation, local, max(1, chunk // BATCH), -(-BATCH // max(1, round(BATCH / chunk)))
        ),
        "loop": Trainer(dataclasses.replace(cohort, clients="loop"), aggregation, local, 1),
    }

    def fed_training(kind: str) -> Callable[[], int]:
        def epoch() -> int:
            plan = data.batches(train, np.arange(CLIENTS), BATCH, 1, 0, "bench")
            sent = server.send(torch.from_numpy(plan.clients).to(device))
            trainers[kind].train(sent, server.read(), [plan], 0.01)
            return count

        return epoch

    def fed_evaluation() -> int:
        values = server.send(torch.arange(CLIENTS, device=device))
        evaluation.accuracies(cohort, values, server.read(), train, chunk)
        return count

    pixels, y = images.batch(torch.arange(count, device=device)), cohort.labels
    batch, bare = fastest(lambda size: bare_training(vit, pixels, y, size), count, device)
    batch_forward, forward = fastest(lambda size: bare_forward(vit, pixels, size), count, device)
    contenders = {
        "training, bare loop": bare,
        "training, stacked": fed_training("stacked"),
        "training, loop": fed_training("loop"),
        "evaluation, bare forward": forward,
        "evaluation, fedbench": fed_evaluation,
    }
    for work in contenders.values():
        work()
    seconds: dict[str, list[float]] = {key: [] for key in contenders}
    for _ in range(repeat):
        for key, work in contenders.items():
            seconds[key].append(timed(work, device))
    rate = matrix_rate(device)
    medians = {key: statistics.median(value) for key, value in seconds.items()}

    def ratio(ours: str, theirs: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))

    return {
        "case": name,
        "images": count,
        "chunk_images": chunk,
        "bare_batch": {"training": batch, "evaluation": batch_forward},
        "images_per_second": {key: count / value for key, value in medians.items()},
        "ratio_to_bare": {
            "training, stacked": ratio("training, stacked", "training, bare loop"),
            "training, loop": ratio("training, loop", "training, bare loop"),
            "evaluation": ratio("evaluation, fedbench", "evaluation, bare forward"),
        },
        "matrix_multiply_adds_per_second": rate,
        "fraction_of_matrix_rate": {
            "training, stacked": count * (per_image.forward + per_image.backward) / medians["training, stacked"] / rate,
            "evaluation": count * per_image.forward / medians["evaluation, fedbench"] / rate,
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case", help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeat", type=int, default=5, help="alternating measurements of each contender")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    if wrong := set(given.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(wrong))}; legal: {', '.join(CASES)}")
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result: dict[str, Any] = {
        "commit": measure.commit(), "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "cases": [],
    }  # fmt: skip
    for wanted in given.cases:
        figures = case(wanted, device, given.repeat)
        result["cases"].append(figures)
        print(f"{wanted}: chunk {figures['chunk_images']}, bare batch {figures['bare_batch']}")
        for key, value in figures["images_per_second"].items():
            print(f"  {key:28s} {value:10.1f} images/s")
        for key, value in figures["ratio_to_bare"].items():
            print(f"  {key:28s} {value:10.2f} of the bare loop")
        for key, value in figures["fraction_of_matrix_rate"].items():
            print(f"  {key:28s} {value:10.2f} of the matrix product rate")
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
