"""What fedbench does on a GPU, on the pretended one: the CPU's numbers, no waiting inside a step, few kernels.

`tests/gpu_counts.csv` holds, for each method, the kernels of a local step (by phase) and of an evaluation, and how often the
host waits for the GPU in a round and in an evaluation. No number may rise. ``make kernels`` writes the table anew.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from pretended_gpu import CUDA, PretendedGPU, Wait
from torch import Tensor

from fedbench.base import process_cache
from fedbench.base.records import MEASURED, RunFolder
from fedbench.bench.cases import Case, World
from fedbench.contract import isolation, rounds, violation
from fedbench.contract.world import Case as ContractCase
from fedbench.method import InputPrompt, linear_head, tokens
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run import evaluation, local, pack, simulation
from fedbench.run.client_optimizer import ClientOptimizer
from fedbench.run.experiment import Experiment, build
from fedbench.run.local import _ChunkTraining
from fedbench.vit import images as images_module

COUNTS = Path(__file__).parent / "gpu_counts.csv"
CASE = Case("fedbench_smoke", 16, clients=3, each=12, batch_size=4)
CLASSES = plugins().classes
PRECISIONS = ("float32", "bfloat16")
TOLERANCE = 1e-6


# PFPT's matching repeats itself; two loops show what a loop does.
METHODS: dict[str, Any] = {name: {"name": name} for name in CLASSES["method"]} | {
    "pfpt": {"name": "pfpt", "loops": 2},
    "fedotp": {"name": "fedotp", "iterations": 2},
    "fedperfix": {"name": "fedperfix", "bottleneck": 8},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield World.make(CASE, tmp_path_factory.mktemp("world"))
    process_cache.clear()  # of what is on the pretended GPU


def sweep(world: World, device: str, graphs: bool = False, **base: Any) -> Any:
    """A sweep of one run on `world`; `base` changes keys of the run."""
    content = {
        "backbone": {
            "name": CASE.backbone,
            "weights": str(world.root / "vit.safetensors"),
            "image_size": CASE.image_size,
        },
        "dataset": {"name": "npz", "path": str(world.root / "images.npz")},
        "partition": "natural",
        "clients": {"number": CASE.clients, "per_round": CASE.clients, "validation": 0},
        "rounds": 2,
        "evaluate_every": 2,
        **base,
        "local": {"batch_size": CASE.batch_size, "lr": 0.01, **base.get("local", {})},
    }
    machine = {"data": str(world.root), "device": device, "graphs": graphs}
    return check_sweep({"base": content, "machine": machine}, plugins())


def experiment(world: World, device: str, **base: Any) -> Experiment:
    """A run on `world`, with nothing in the caches that another device has computed."""
    process_cache.clear()
    shutil.rmtree(world.root / "features", ignore_errors=True)
    checked = sweep(world, device, **base)
    return build(checked.runs[0], checked.machine, plugins())


@dataclasses.dataclass
class Outcome:
    """What a run of two rounds ends with."""

    state: dict[str, Tensor]
    accuracies: list[float]
    costs: list[dict[str, Any]]


def outcome(run: Experiment) -> Outcome:
    costs = [vars(simulation.one_round(run, round_).costs) for round_ in (1, 2)]
    accuracies = evaluation.evaluate(run).clients["accuracy"].to_pylist()
    return Outcome({name: value.cpu() for name, value in run.server.state().items()}, accuracies, costs)


def assert_equal(actual: Outcome, expected: Outcome) -> None:
    assert actual.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        torch.testing.assert_close(
            actual.state[name].double(),
            value.double(),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert actual.accuracies == expected.accuracies
    for here, there in zip(actual.costs, expected.costs, strict=True):
        for name, value in there.items():  # the loss is None if nothing is trained
            assert here[name] == (value if value is None else pytest.approx(value, rel=1e-5)), name


class Steps:
    """Kernels of each local step, by phase, and the waits inside phases' steps. A step ends where the next one begins."""

    def __init__(self, gpu: PretendedGPU) -> None:
        self.gpu = gpu
        self.phases: list[list[int]] = []  # kernels before each step
        self.waits: list[Wait] = []
        self._since: int | None = None

    @contextmanager
    def traced(self) -> Any:
        phase, gradients, step = _ChunkTraining._phase, _ChunkTraining.gradients, ClientOptimizer.step

        def traced_phase(*args: Any) -> None:
            self.phases.append([])
            self._since = None
            phase(*args)

        def traced_gradients(*args: Any) -> Any:
            self.phases[-1].append(self.gpu.count)
            self._since = len(self.gpu.waits) if self._since is None else self._since
            return gradients(*args)

        def traced_step(*args: Any) -> None:
            step(*args)
            self.waits += self.gpu.waits[self._since :]
            self._since = len(self.gpu.waits)

        with (
            mock.patch.object(_ChunkTraining, "_phase", traced_phase),
            mock.patch.object(_ChunkTraining, "gradients", traced_gradients),
            mock.patch.object(ClientOptimizer, "step", traced_step),
        ):
            yield

    def kernels(self) -> list[int]:
        """Kernels of the last whole step of each phase."""
        return [marks[-1] - marks[-2] for marks in self.phases]


def counted(world: World, precision: str, **base: Any) -> tuple[Outcome, dict[str, int], list[Wait]]:
    """The outcome on the pretended GPU; {what: count} as in the table; and the waits inside steps."""
    with PretendedGPU() as gpu:
        run = experiment(world, "cuda", precision=precision, **base)
        costs = [vars(simulation.one_round(run, 1).costs)]
        gpu.waits.clear()
        steps = Steps(gpu)
        with steps.traced():
            costs.append(vars(simulation.one_round(run, 2).costs))
        counts = {f"kernels of a step, phase {i}": kernels for i, kernels in enumerate(steps.kernels())}
        counts["waits of a round"] = len(gpu.waits)
        gpu.waits.clear()
        before = gpu.count
        accuracies = evaluation.evaluate(run).clients["accuracy"].to_pylist()
        counts["waits of an evaluation"] = len(gpu.waits)
        counts["kernels of an evaluation"] = gpu.count - before
        state = {name: value.cpu() for name, value in run.server.state().items()}
    return Outcome(state, accuracies, costs), counts, steps.waits


def table() -> dict[tuple[str, str, str], int]:
    """{(method, precision, what): count}, as pinned."""
    with COUNTS.open() as file:
        return {(r["method"], p, r["count"]): int(r[p]) for r in csv.DictReader(file) for p in PRECISIONS}


def too_many(name: str, precision: str, counts: dict[str, int]) -> list[str]:
    """Which counts are larger than in the table, or not in it."""
    pinned = table()
    larger = {what: n for what, n in counts.items() if n > pinned.get((name, precision, what), -1)}
    return [f"{name}, {what}: {n}, pinned {pinned.get((name, precision, what))}" for what, n in larger.items()]


QUICK_IN_BFLOAT16 = ("fedvpt", "pep_fedpt", "lora")
ROSTER = [
    pytest.param(name, p, marks=pytest.mark.slow if p == "bfloat16" and name not in QUICK_IN_BFLOAT16 else ())
    for name, cls in CLASSES["method"].items()
    for p in PRECISIONS
    if not cls.reads_text
]


@pytest.mark.parametrize(("name", "precision"), ROSTER)
def test_a_method_has_the_cpus_numbers_and_waits_in_no_step_and_starts_no_more_kernels(name, precision, world):
    """bfloat16 is rounded as on a CPU, so its numbers are the CPU's too."""
    actual, counts, waits_in_steps = counted(world, precision, method=METHODS[name])
    assert not waits_in_steps
    assert not too_many(name, precision, counts), "fewer kernels, or `make kernels` if it is worth them"
    assert_equal(actual, outcome(experiment(world, "cpu", precision=precision, method=METHODS[name])))


def test_the_table_of_counts_holds_every_method_and_no_other():
    assert {name for name, _, _ in table()} == {name for name, cls in CLASSES["method"].items() if not cls.reads_text}


TEXT = [name for name, cls in CLASSES["method"].items() if cls.reads_text]


@pytest.mark.parametrize("name", [n if n == "promptfl" else pytest.param(n, marks=pytest.mark.slow) for n in TEXT])
def test_a_method_with_text_has_the_cpus_numbers_and_waits_in_no_step(name, world):
    content = {"method": METHODS[name], "backbone": tiny.write_two_towers(world.root / "two_towers.safetensors")}
    actual, _, waits_in_steps = counted(world, "float32", **content)
    assert not waits_in_steps
    assert_equal(actual, outcome(experiment(world, "cpu", precision="float32", **content)))


OTHERS: dict[str, dict[str, Any]] = {
    **{f"{a}": {"aggregation": a} for a in CLASSES["aggregation"] if a != "fedavg"},
    **{
        f"local+{a}": {"aggregation": a, "method": {"name": "fedvpt", "prompt": "local"}}
        for a in ("scaffold", "fedprox")
    },
    "float64": {"precision": "float64"},
    "tf32": {"precision": "tf32"},
    "adam": {"local": {"optimizer": "adam", "clip": 1.0}},
    "adamw": {"local": {"optimizer": "adamw", "weight_decay": 0.1}},
    "clip": {"local": {"clip": 0.1}},
    "flip": {"local": {"augment": "flip"}},
    "crop_flip": {"local": {"augment": "crop_flip"}},
    "crop_flip+pixels": {"local": {"augment": "crop_flip"}, "method": "pfedpt"},
    "held out": {"clients": {"number": 3, "per_round": 2, "held_out": 1, "validation": 0.2}, "method": "pep_fedpt"},
    "log-prior": {"method": {"name": "fedvpt", "logit_prior": "both"}},
    "fine-tuning": {"method": {"name": "fedvpt", "finetune_epochs": 1}},
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case.startswith(tiny.ALIKE) else case for case in OTHERS]
)
def test_every_other_part_of_a_run_has_the_cpus_numbers_and_waits_in_no_step(case, world):
    base = {"method": "fedvpt", "precision": "float32", **OTHERS[case]}
    actual, _, waits_in_steps = counted(world, base.pop("precision"), **base)
    assert not waits_in_steps
    expected = outcome(experiment(world, "cpu", **{"method": "fedvpt", **OTHERS[case]}))
    assert_equal(actual, expected)


@pytest.mark.parametrize("name", ["fedvpt", "pep_fedpt"])
def test_streamed_images_give_the_same_numbers_and_no_step_waits(name, world, monkeypatch):
    expected = outcome(experiment(world, "cpu", method=name))
    monkeypatch.setattr(images_module, "RESIDENT_BYTES", 0)
    actual, _, waits_in_steps = counted(world, "float32", method=name)
    assert not waits_in_steps
    assert_equal(actual, expected)


@pytest.mark.parametrize("kept", ["resized", "source"])
def test_images_that_are_resized_on_a_gpu_have_the_cpus_pixels(kept, monkeypatch):
    """Noise of 18 px at 40 px; with room for the source images only, each batch is resized anew."""
    source = np.random.default_rng(0).integers(0, 256, (9, 18, 18, 3), dtype=np.uint8)
    expected = images_module.Images(source, 40, (0.5,) * 3, (0.4,) * 3, torch.device("cpu"), torch.float32)
    if kept == "source":
        monkeypatch.setattr(images_module, "RESIDENT_BYTES", source.nbytes)
    with PretendedGPU() as gpu:
        images = images_module.Images(source, 40, (0.5,) * 3, (0.4,) * 3, CUDA, torch.float32)
        assert (images.pixels is None) == (kept == "source")
        index = torch.tensor([8, 0, 3, 3], device="cuda")
        images.batch(index)
        gpu.waits.clear()
        found = images.batch(index)
        assert gpu.waits == []
        assert torch.equal(found.cpu(), expected.batch(torch.tensor([8, 0, 3, 3])))


def test_a_pack_on_a_gpu_gives_each_run_the_numbers_that_it_has_alone_on_a_cpu(world):
    bases = [{"method": "pep_fedpt", "seed": seed, "local": {"lr": lr}} for seed, lr in ((0, 0.01), (1, 0.03))]
    expected = [outcome(experiment(world, "cpu", **base)) for base in bases]
    with PretendedGPU() as gpu:
        process_cache.clear()
        checked = [sweep(world, "cuda", **base) for base in bases]
        runs = [build(each.runs[0], each.machine, plugins()) for each in checked]
        costs: list[list[Any]] = [[], []]
        for round_ in (1, 2):
            sent = [simulation.send(run, round_) for run in runs]
            steps = Steps(gpu)
            with steps.traced():
                updates = pack.train_together([each.training for each in sent])
            assert len(steps.phases) == 1  # both runs in one graph
            assert not steps.waits
            for i, (run, round_sent, client_updates) in enumerate(zip(runs, sent, updates, strict=True)):
                costs[i].append(vars(simulation.receive(run, round_, round_sent, client_updates).costs))
        for run, cost, alone in zip(runs, costs, expected, strict=True):
            state = {name: value.cpu() for name, value in run.server.state().items()}
            accuracies = evaluation.evaluate(run).clients["accuracy"].to_pylist()
            assert_equal(Outcome(state, accuracies, cost), alone)


def test_equal_trainings_are_found_with_one_wait(world):
    """Three runs that differ in evaluation alone, and one with another start."""
    bases = [{"method": {"name": "fedvpt", "logit_prior": prior}} for prior in ("none", "eval", "none", "none")]
    with PretendedGPU() as gpu:
        process_cache.clear()
        checked = [sweep(world, "cuda", **base) for base in bases]
        runs = [build(each.runs[0], each.machine, plugins()) for each in checked]
        runs[3].server.values["prompt"] += 1
        trainings = [simulation.send(run, 1).training for run in runs]
        for some, first, waits in ((trainings[:3], [0, 0, 0], 1), (trainings, [0, 0, 0, 3], 1)):
            gpu.waits.clear()
            assert pack._copies(some) == first
            assert len(gpu.waits) == waits
        assert pack._copies([trainings[3], *trainings[:2], trainings[3]]) == [0, 1, 1, 0]


@pytest.mark.parametrize("name", ["fedrep", "pfpt"])
def test_a_run_that_is_interrupted_on_a_gpu_resumes_there_and_on_a_cpu_with_the_same_numbers(name, world, tmp_path):
    """Local values and a pool that changes its size go through the checkpoint."""

    def run(place: str, device: str, must_leave: bool = False) -> list[dict[str, Any]]:
        process_cache.clear()
        checked = sweep(world, device, method=METHODS[name])
        folder = RunFolder(tmp_path / place)
        if not folder.path.exists():
            folder.plan(checked.on_disk(checked.runs[0]))
        with PretendedGPU() if device == "cuda" else nullcontext():
            try:
                simulation.run_rounds(checked.runs[0], checked.machine, plugins(), folder, lambda: must_leave)
            except simulation.Stopped:
                assert must_leave
        return [
            {k: v for k, v in record.items() if k not in (*MEASURED, "commit", "code")} for record in folder.records()
        ]

    expected = run("cpu", "cpu")
    assert len(expected) == 1
    for place, second in (("both", "cuda"), ("first", "cpu")):
        assert run(place, "cuda", must_leave=True) == []
        (record,) = run(place, second)
        for key, value in expected[0].items():
            if key != "chunk_images":  # a device's own
                assert record[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key


@dataclasses.dataclass(frozen=True)
class Scaled(InputPrompt):
    """Prompts with a factor that is made on `place`."""

    place: str = "cpu"

    def params(self, task):
        return self.prompt_param(task) | linear_head(task)

    def prompts(self, layer, p, cls, query):
        factor = torch.ones(p["prompt"].shape[-1], device=cls.device if self.place == "cls" else "cpu")
        return {"prompt": tokens(p["prompt"] * factor, cls)}


@pytest.mark.parametrize(("place", "found"), [("cls", None), ("cpu", "on the same device.*cuda:0 and cpu")])
def test_the_contract_on_a_gpu_refuses_a_hook_that_mixes_devices(place, found):
    """The same method keeps the contract on a CPU."""
    for device in (torch.device("cpu"), CUDA):
        with PretendedGPU() if device == CUDA else nullcontext():
            problem = violation(rounds.chunks_change_nothing, ContractCase(Scaled(place=place), device=device))
        if device == CUDA and found:
            assert problem is not None
            assert re.search(found, problem)
        else:
            assert problem is None


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES["method"])
def test_every_method_keeps_the_contract_on_a_gpu(name, world):
    with PretendedGPU():
        fields = {key: value for key, value in METHODS[name].items() if key != "name"}
        case = ContractCase(CLASSES["method"][name](**fields), device=CUDA)
        checks = [c for c in (*isolation.CHECKS, *rounds.CHECKS) if c.subject_kind == "run" or case.trains]
        assert {c.name: found for c in checks if (found := violation(c, case))} == {}


# -- each of these tests can fail ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_on_gpu(world: World) -> Experiment:
    """A run of fedvpt on the pretended GPU; its local training changes nothing of it."""
    with PretendedGPU():
        return experiment(world, "cuda", method="fedvpt")


def local_training(run: Experiment) -> tuple[list[int], list[Wait]]:
    """Kernels of a step of each phase, and the waits in steps, of the local training of a round."""
    with PretendedGPU() as gpu:
        steps = Steps(gpu)
        with steps.traced():
            run.train(run.cohort_of(1), 0.01, 1)
        return steps.kernels(), steps.waits


def planted(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """`change` is applied to each piece's losses inside every local step."""
    masked_sum = local.masked_sum
    monkeypatch.setattr(local, "masked_sum", lambda values, weight: masked_sum(change(values), weight))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda v: v * v.detach().max().item(), "aten::_local_scalar_dense needs values"),
        (lambda v: v if v.detach().sum() > 0 else -v, "aten::_local_scalar_dense needs values"),
        (lambda v: v * float(v.detach().cpu().max()), "copy to the host"),
        (lambda v: v * v.tolist()[0][0], "tolist"),
        (lambda v: v + 0 * v[v > 0].sum(), "index by a mask"),
        (lambda v: v + 0 * len(v.detach().nonzero()), "aten::nonzero needs values"),
        (lambda v: v + torch.zeros(v.shape).to(v.device), "copy from the host"),
        (lambda v: v + torch.zeros(v.shape).to(v.device, non_blocking=True), "copy from the host"),  # not pinned
        (lambda v: v + torch.zeros(v.shape).pin_memory().to(v.device), "copy from the host"),  # blocking
        (lambda v: v * torch.tensor(1.0, device=v.device), "copy from the host"),
        (lambda v: v[torch.arange(len(v), device="cpu")], "index on the host"),
        (lambda v: torch.cuda.synchronize() or v, "torch.cuda.synchronize"),
    ],
)
def test_a_wait_inside_a_step_is_seen_with_its_line(change, why, run_on_gpu, monkeypatch):
    planted(monkeypatch, change)
    _, waits = local_training(run_on_gpu)
    assert {wait.why for wait in waits} == {why}
    assert {wait.line.partition(":")[0] for wait in waits} == {"fedbench/run/local.py"}
    assert len(waits) in (3, 6)  # in each step of a round; an index is read again in the backward pass


def test_a_copy_from_pinned_memory_is_no_wait(run_on_gpu, monkeypatch):
    planted(monkeypatch, lambda v: v + torch.zeros(v.shape).pin_memory().to(v.device, non_blocking=True))
    assert local_training(run_on_gpu)[1] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v + torch.ones(v.shape), "on the same device.*aten::add"),
        (lambda v: torch.cat([v, torch.ones(1, v.shape[1])])[:-1], "on the same device.*aten::cat"),
        (lambda v: v + torch.arange(9.0)[v.long() * 0], "indices should be either on cpu"),
        (lambda v: v + torch.rand(v.shape, device=v.device), "draws other numbers on a GPU"),
        (lambda v: v + v.detach().numpy().sum(), "can't convert cuda:0 device type tensor to numpy"),
        (lambda v: v + np.asarray(v.detach()).sum(), "can't convert cuda:0 device type tensor to numpy"),
    ],
)
def test_what_fails_on_a_gpu_fails_here(change, message, run_on_gpu, monkeypatch):
    planted(monkeypatch, change)
    with pytest.raises((RuntimeError, TypeError), match=message):
        local_training(run_on_gpu)


def test_a_number_on_the_host_may_be_in_an_operator(run_on_gpu, monkeypatch):
    """As on a GPU, a tensor of no dimensions may come from the host."""
    planted(monkeypatch, lambda v: v * torch.tensor(1.0))
    assert local_training(run_on_gpu)[1] == []


def test_one_more_kernel_in_a_step_is_counted_and_refused(run_on_gpu, monkeypatch):
    (before,), _ = local_training(run_on_gpu)
    planted(monkeypatch, lambda v: v.view(-1).view_as(v))  # views are no kernels
    assert local_training(run_on_gpu)[0] == [before]
    monkeypatch.undo()
    planted(monkeypatch, lambda v: v.detach().neg() * 0 + v)
    (after,), _ = local_training(run_on_gpu)
    assert after == before + 3
    step = "kernels of a step, phase 0"
    assert too_many("fedvpt", "float32", {step: before}) == []
    assert too_many("fedvpt", "float32", {step: after}) == [f"fedvpt, {step}: {after}, pinned {before}"]


def test_other_numbers_than_the_cpus_are_seen(world, monkeypatch):
    planted(monkeypatch, lambda v: v * (1 + 1e-3 * v.is_cuda))
    actual, _, _ = counted(world, "float32", method="fedvpt")
    with pytest.raises(AssertionError, match=r"server\."):
        assert_equal(actual, outcome(experiment(world, "cpu", method="fedvpt")))


def test_nothing_of_the_pretended_gpu_is_left_behind(world):
    before = {name: getattr(torch.Tensor, name) for name in ("to", "cpu", "device", "numpy", "tolist")}
    with PretendedGPU():
        value = torch.ones(3, device="cuda")
        assert (value.device, value.is_cuda) == (CUDA, True)
        assert torch.vmap(lambda row: row * torch.zeros((), device=row.device))(value).device == CUDA
    assert {name: getattr(torch.Tensor, name) for name in before} == before
    assert not torch.cuda.is_available()
    assert torch.ones(3).device.type == "cpu"


def test_tensors_without_values_are_made_in_and_after_the_pretended_gpu():
    """torch keeps the list of the factories that obey ``with torch.device``, and may first ask for it inside."""
    torch.utils._device._device_constructors.cache_clear()
    with PretendedGPU(), torch.device("meta"):
        assert torch.empty(3).is_meta
    with torch.device("meta"):
        assert torch.empty(3).is_meta


def rewrite() -> None:
    """Write tests/gpu_counts.csv."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        here = World.make(CASE, Path(root))
        rows = []
        for name in sorted(name for name, cls in CLASSES["method"].items() if not cls.reads_text):
            by_precision = {p: counted(here, p, method=METHODS[name])[1] for p in PRECISIONS}
            rows += [
                {"method": name, "count": what, **{p: by_precision[p][what] for p in PRECISIONS}}
                for what in by_precision[PRECISIONS[0]]
            ]
    with COUNTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["method", "count", *PRECISIONS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sys.stdout.write(COUNTS.read_text())


if __name__ == "__main__":
    rewrite()
