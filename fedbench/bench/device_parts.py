"""The parts of a device report: ``python -m fedbench.bench.device_parts FILE DEVICE PART ...`` writes FILE after each item.

`fedbench.bench.device_report` starts them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedbench.base import process_cache, provenance
from fedbench.base.storage import write_atomically
from fedbench.bench import clock, measuring
from fedbench.bench.cases import CASES, METHODS, World
from fedbench.contract import isolation, rounds, violation
from fedbench.contract.world import Case
from fedbench.plan.device import choose_device
from fedbench.plan.plugins import plugins
from fedbench.run import evaluation, simulation

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pydantic", "submitit", "pyarrow", "pandas")
SMALL_ROSTER = ("fedvpt", "pep_fedpt", "lora")
# The largest difference between the values of a CPU and a device after two rounds, relative to the largest value of a
# tensor. bfloat16 keeps 8 bits, so the gradients of two devices differ by some parts in a hundred.
TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "bfloat16": 2e-2}
WAYS = {  # what is compared: (precision, options of `machine:` on the device)
    **{precision: (precision, {}) for precision in TOLERANCES},
    "float32 with graphs": ("float32", {"graphs": True}),
}

Result = dict[str, Any]


def device_facts(device: torch.device, small: bool) -> Iterator[Result]:
    """Versions, the device, and its rates: matrix products, memory, and the start of a kernel."""
    facts: Result = {
        "commit": provenance.commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device.type,
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        facts |= {
            "device_name": about.name,
            "memory_bytes": about.total_memory,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    yield facts
    size = 512 if small or device.type == "cpu" else 8192
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        yield {f"multiply_adds_per_second_{str(dtype)[6:]}": clock.matrix_rate(device, dtype, size)}
    source = torch.empty(size * size * 4, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(clock.timed(lambda: target.copy_(source), device) for _ in range(5))
    yield {"copied_bytes_per_second": 2 * source.numel() / seconds}
    tiny = torch.zeros(1, device=device)

    def kernels() -> None:
        for _ in range(1000):
            tiny.add_(1)

    yield {"seconds_of_a_tiny_kernel": min(clock.timed(kernels, device) for _ in range(5)) / 1000}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def visual_methods() -> list[str]:
    """The methods that run on a plain ViT, which has no text tower."""
    return [name for name, cls in plugins().classes["method"].items() if not cls.reads_text]  # type: ignore[attr-defined]


def agreement(device: torch.device, small: bool) -> Iterator[Result]:
    """Two rounds and an evaluation of every method, on the CPU and on the device, in each of `WAYS`.

    A client has two steps in a round, so that graphs captured in the first round are replayed in the second.
    """
    yield {"tolerances": TOLERANCES}
    with tempfile.TemporaryDirectory() as root:
        world = World.make(CASES["smoke@16"], Path(root))
        for name in SMALL_ROSTER if small else visual_methods():
            by_way = {}
            for way, (precision, machine) in WAYS.items():
                try:
                    expected, accuracies = _two_rounds(world, name, "cpu", precision)
                    values, measured = _two_rounds(world, name, str(device), precision, machine)
                    differences = {n: relative_difference(values[n], value) for n, value in expected.items()}
                    worst = max(differences, key=differences.__getitem__)
                    by_way[way] = {
                        "agrees": differences[worst] <= TOLERANCES[precision],
                        "difference": differences[worst],
                        "of": worst,
                        "accuracy_difference": max(abs(a - b) for a, b in zip(accuracies, measured, strict=True)),
                    }
                except Exception as error:  # noqa: BLE001 - a method that fails must not end the part
                    by_way[way] = {"agrees": False, "error": f"{type(error).__name__}: {error}"}
            yield {"methods": {name: by_way}}


def _two_rounds(
    world: World, name: str, device: str, precision: str, machine: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], list[float]]:
    """All values after two rounds on `device`, on the CPU, and the clients' accuracies."""
    process_cache.clear()  # frozen parts of the other device
    experiment = world.experiment({"name": name}, plugins(), device, precision, **(machine or {}))
    for round_ in (1, 2):
        simulation.one_round(experiment, round_)
    table = evaluation.evaluate(experiment).clients
    state = {name: value.cpu() for name, value in experiment.server.state().items()}
    return state, table["accuracy"].to_pylist()


def relative_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value of `b`; infinite if their shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


def contract(device: torch.device, small: bool) -> Iterator[Result]:
    """The contract checks of every method with its defaults, with its rounds on the device."""
    classes = plugins().classes["method"]
    for name in SMALL_ROSTER[:1] if small else classes:
        case = Case(classes[name](), device=device)
        broken = {}
        for check in (*isolation.CHECKS, *rounds.CHECKS):
            if check.subject_kind == "run" or case.trains:
                try:
                    problem = violation(check, case)
                except Exception as error:  # noqa: BLE001 - the other checks go on
                    problem = f"{type(error).__name__}: {error}"
                if problem:
                    broken[check.name] = problem
        yield {"methods": {name: broken}}


class Operators(TorchDispatchMode):
    """Counts operators that compute something, without views and allocations: about the kernels that a GPU starts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count `func` and call it."""
        aliases = [returned.alias_info for returned in func._schema.returns]
        view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
        self.count += not (view or "empty" in func._schema.name)
        return func(*args, **(kwargs or {}))


def speed(device: torch.device, case: str) -> Iterator[Result]:
    """Rates, shares of the matrix product rate, memory and parts of a round of a case, one method after the other."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    yield {"case": case, "precision": precision, "weights": "embedded" if case.startswith("nano") else "random"}
    with tempfile.TemporaryDirectory() as root:
        world = World.make(CASES[case], Path(root))
        for name in METHODS:
            experiment = world.experiment({"name": name}, plugins(), str(device), precision)
            simulation.one_round(experiment, 1)  # statistics are reported, caches are filled
            training = experiment.prepare(experiment.cohort_of(1), experiment.run.local.lr, 1)
            with Operators() as operators:
                training.train()
            steps = sum(len(batches.active) for batches in training.batches)
            yield {"operators_of_a_step": {name: operators.count / max(1, steps)}}
            del experiment, training
            yield {"kernels_of_a_round": {name: _kernels(world, name, device, precision)}}
    options = measuring.MeasureOptions(
        methods=[{"name": name} for name in METHODS],
        device=device,
        precision=precision,
        repeat=3,
        plugins=plugins(),
        compile=False,
        graphs=device.type == "cuda",
        pack=True,
    )
    yield {"measured": measuring.case(case, options)}
    if device.type == "cuda":  # last, because compiling takes long
        options = replace(options, methods=options.methods[:1], compile=True, graphs=False, pack=False)
        yield {"compiled": measuring.case(case, options)}


def _kernels(world: World, name: str, device: torch.device, precision: str) -> int | None:
    """Kernels that a GPU runs in the local training of a round, by torch's profiler; None on a CPU."""
    if device.type != "cuda":
        return None
    experiment = world.experiment({"name": name}, plugins(), str(device), precision)
    training = experiment.prepare(experiment.cohort_of(1), experiment.run.local.lr, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        training.train()
        torch.cuda.synchronize(device)
    events: Any = profiler.events()  # also of the host's calls that start kernels
    on_device = [event.name for event in events if event.device_type.name == "CUDA"]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)


PARTS: Mapping[str, Callable[[torch.device, Any], Iterator[Result]]] = {
    "device": device_facts,
    "agreement": agreement,
    "contract": contract,
    "speed": speed,
}


def main(arguments: Sequence[str]) -> None:
    """Run one part: the file to write, the device, the part's name, and ``small`` or a case."""
    file, device, name, *rest = arguments
    argument: Any = rest[0] if name == "speed" else bool(rest)
    content: Result = {}
    start = time.monotonic()
    for result in PARTS[name](choose_device(device), argument):
        for key, value in result.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
        content["seconds"] = round(time.monotonic() - start, 2)
        write_atomically(Path(file), (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
