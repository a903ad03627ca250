"""torch.compile: the same numbers, and few compiled forms for passes of all sizes."""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import CUDA, PretendedGPU
from test_simulation import data, numbers, run, sweep  # noqa: F401 - data is a fixture
from timm.models.vision_transformer import Block
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_fw_bw_and_get_code

from fedbench.base import process_cache
from fedbench.base.records import RunFolder
from fedbench.bench import command
from fedbench.run.simulation import run_rounds
from fedbench.vit import compiled
from fedbench.vit.backbone import Backbone, whole

pytestmark = [
    pytest.mark.slow,  # tracing and compiling take their time
    pytest.mark.filterwarnings("ignore"),  # what torch's compiler warns itself of
]
# Uneven clients, and so passes of many sizes; steps so small that rounding does not grow.
RECIPE: dict[str, Any] = {
    "precision": "float64",
    "partition": {"name": "dirichlet", "alpha": 0.5, "min_train": 3},
    "evaluate_every": 1,
    "local": {"batch_size": 4, "lr": 0.002},
}


@pytest.fixture(autouse=True)
def from_nothing() -> Any:
    """No form and no backbone of another test is left."""
    process_cache.clear()
    torch._dynamo.reset()
    yield
    process_cache.clear()
    torch._dynamo.reset()


def same(first: RunFolder, second: RunFolder) -> None:
    """The same numbers up to rounding."""
    for a, b in zip(numbers(first), numbers(second), strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value == (pytest.approx(b[key], rel=1e-9) if isinstance(value, float) else b[key]), key


@pytest.mark.parametrize("method", ["fedvpt", "fedvpt_deep", "pep_fedpt"])
def test_few_forms_are_compiled_for_passes_of_many_sizes(data, tmp_path, monkeypatch, method):  # noqa: F811
    counter = CompileCounterWithBackend("aot_eager")  # all of it but the C++ compiler
    monkeypatch.setattr(compiled, "BACKEND", counter)
    sizes: set[int] = set()
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x, *a, **b: sizes.add(len(x)) or forward(self, x, *a, **b))
    plan = sweep(data, [method], **RECIPE)
    (planned,) = plan.runs
    folder = RunFolder(tmp_path / "compiled" / planned.name)
    folder.plan(plan.on_disk(planned))
    counts: list[int] = []  # after each round and its evaluation
    full: set[int] = set()
    call = compiled.CompiledBlocks.__call__
    monkeypatch.setattr(
        compiled.CompiledBlocks, "__call__", lambda self, *args: full.add(self.most) or call(self, *args)
    )
    machine = plan.machine.model_copy(update={"compile": True})
    run_rounds(planned, machine, plan.plugins, folder, lambda: counts.append(counter.frame_count) or False)
    padded = {compiled.padded_size(size, *full) for size in sizes}
    assert len(sizes) > len(padded)  # passes of several sizes share a form
    assert 0 < counts[-1] <= 8 * len(padded)  # the blocks share them as well
    same(folder, run(planned, plan, tmp_path / "plain"))


@pytest.mark.parametrize(
    ("count", "most", "padded"),
    [
        (1, 975, 8), (8, 975, 8), (9, 975, 10), (32, 975, 32), (33, 975, 40), (288, 975, 320), (320, 975, 320),
        (321, 975, 384), (960, 975, 975), (975, 975, 975), (3, 4, 4), (5, 4, 8),
    ],
)  # fmt: skip
def test_a_pass_is_padded_to_the_next_of_few_sizes(count, most, padded):
    """10 clients x 32 images are not padded, although 975 images would fit into a pass."""
    assert compiled.padded_size(count, most) == padded


def test_padding_adds_less_than_a_quarter_and_there_are_four_sizes_between_powers_of_two():
    sizes = [compiled.padded_size(count, 1 << 20) for count in range(8, 1025)]
    assert all(count <= size < 1.25 * count for count, size in enumerate(sizes, start=8))
    assert len(set(sizes)) == 4 * 7 + 1  # from 8 to 1024


def test_clients_with_backbone_weights_of_their_own_are_not_compiled(data, tmp_path, monkeypatch):  # noqa: F811
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    plan = sweep(data, ["lora"], **RECIPE)
    run(plan.runs[0], plan, tmp_path, compile=True)
    assert counter.frame_count == 0


def test_cached_features_are_the_same_with_and_without(data, tmp_path, monkeypatch):  # noqa: F811
    """Other runs read the features, so they are computed without compiled blocks."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    plan = sweep(data, ["fedvpt", "pep_fedpt"], **RECIPE)
    cached = []
    for compile_ in (True, False):
        machine = {"data": tmp_path / f"data-{compile_}", "compile": compile_}
        for planned in plan.runs:
            run(planned, plan, tmp_path / str(compile_), **machine)
        (path,) = (machine["data"] / "features").glob("*/features.npy")
        cached.append(path.read_bytes())
        process_cache.clear()
    assert cached[0] == cached[1]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_with_the_backend_that_users_have(data, tmp_path):  # noqa: F811
    plan = sweep(data, ["pep_fedpt"], **RECIPE)
    same(*(run(plan.runs[0], plan, tmp_path / str(compile_), compile=compile_) for compile_ in (True, False)))


def test_the_benchmark_measures_it_beside_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    options = ["--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1", "--compile", "--json"]
    assert command.main([*options, str(tmp_path / "found.json")]) == 0
    (case,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert case["baselines"]["compiled"]["training"]["images_per_second"] > 0
    assert case["baselines"]["compiled"]["evaluation"]["times_bare_loop"] > 0


def test_a_benchmark_continues_without_a_compiler_and_gives_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1", "--compile", "--json"]
    with torch._inductor.config.patch({"cpp.cxx": ("nowhere",)}):
        assert command.main([*options, str(tmp_path / "result.json")]) == 0
    (case,) = json.loads((tmp_path / "result.json").read_text())["cases"]
    assert case["compile_error"].startswith("torch.compile fails on this machine")
    assert "No working C++ compiler found" in case["compile_error"]
    assert case["compile_error"] in capsys.readouterr().out
    assert "compiled" not in case["baselines"]
    assert case["methods"]["fedvpt"]["training"]["images_per_second"] > 0


def plain_kernels(block: Any, x: torch.Tensor) -> tuple[int, int]:
    """Kernels of the forward and the backward pass of a block without a compiler, on the pretended GPU."""
    with PretendedGPU() as gpu:
        block, x = copy.deepcopy(block).to(CUDA), x.detach().to(CUDA).requires_grad_()
        gpu.kernels.clear()
        with torch.autocast("cuda", torch.bfloat16):
            out = whole(block, x)
        forward, grad = gpu.count, torch.ones(out.shape, device="cuda")
        gpu.kernels.clear()
        torch.autograd.grad(out, x, grad)
        return forward, gpu.count


def passes(part: Any, block: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The output and the gradient of x [N, T, D], and the bytes that autograd keeps, in units of N T D."""
    frozen = {value.untyped_storage().data_ptr() for value in block.parameters()}
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16):
        out = part(block, x)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    return out, grad, sum(kept.values()) / x.numel()


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_block_fuses_residual_norm_and_cast_and_keeps_no_more_than_the_plain_one():
    """In bfloat16, with frozen weights. The compiler fuses for a CPU here; a GPU's kernels may be cut otherwise."""
    torch.manual_seed(0)
    block = Block(64, 2, qkv_bias=True).eval().requires_grad_(False)
    for layer in block.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.to(torch.bfloat16)
    x = torch.randn(8, 17, 64).requires_grad_()
    compiled_block = torch.compile(whole, dynamic=False)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled_block(block, x)

    _, codes = run_fw_bw_and_get_code(forward)
    calls = [re.findall(r"((?:cpp_fused|extern_kernels|torch\.ops)[\w.]*)\(", c[c.index("def call(") :]) for c in codes]
    assert plain_kernels(block, x) == (12, 16)
    assert [len(each) for each in calls] == [9, 11]
    # One kernel adds the residual, normalises, and casts; the same backwards.
    assert [sum("to_copy_add_native_layer_norm" in call for call in each) for each in calls] == [1, 2]
    (out, grad, kept), (plain, plain_grad, plain_kept) = (passes(part, block, x) for part in (compiled_block, whole))
    torch.testing.assert_close(out, plain, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grad, plain_grad, rtol=2e-2, atol=2e-2 * float(plain_grad.abs().max()))
    assert kept == pytest.approx(22.4, abs=0.1)  # bytes; norms keep two numbers for each token
    assert plain_kept == pytest.approx(24.4, abs=0.1)


def test_full_passes_are_not_copied_to_be_padded(monkeypatch):
    """8 images are a form of their own; 3 are padded to 8, and 3 are returned."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    blocks = compiled.CompiledBlocks(100)
    places: list[int] = []

    def part(block: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda *args: places.append(len(args[0])) or pad(*args))
    for count in (8, 3):
        x = torch.randn(count, 2, 4)
        assert torch.equal(blocks(part, None, x), x * 2)
    assert places == [3]


def test_a_run_continues_without_a_compiler_and_one_line_says_so(data, tmp_path, caplog):  # noqa: F811
    plan = sweep(data, ["fedvpt"], **RECIPE)
    with caplog.at_level(logging.WARNING, "fedbench"), torch._inductor.config.patch({"cpp.cxx": ("nowhere",)}):
        compiled_run = run(plan.runs[0], plan, tmp_path / "compiled", compile=True)
    (line,) = [record.getMessage() for record in caplog.records if "compile" in record.getMessage()]
    assert line.startswith("torch.compile fails on this machine, so blocks run without it: ")
    assert "No working C++ compiler found" in line
    same(compiled_run, run(plan.runs[0], plan, tmp_path / "plain"))
