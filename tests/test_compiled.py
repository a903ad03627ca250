"""torch.compile: the same numbers, and nothing is compiled after the first round, whatever sizes the passes have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fedbench import compiled, shared
from fedbench.backbone import Backbone
from fedbench.bench import command
from fedbench.config import Sweep
from fedbench.planning import check_sweep
from fedbench.plugins import plugins
from fedbench.records import MEASURED, RunFolder
from fedbench.simulation import begin, one_round

# What torch's compiler warns itself of.
pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = ["fedvpt", "fedvpt_deep", "pep_fedpt", "lora"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images of 4 classes, dealt unevenly below: passes of many sizes."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    images = np.random.default_rng(0).integers(0, 255, (100, 32, 32, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(100) % 4, is_test=np.arange(100) % 20 < 4)
    return path


@pytest.fixture(autouse=True)
def from_nothing() -> Any:
    """No form and no backbone of another test is left."""
    shared.forget()
    torch._dynamo.reset()
    yield
    shared.forget()
    torch._dynamo.reset()


def sweep(data: Path, method: str, **machine: Any) -> Sweep:
    content = {
        "base": {
            "dataset": {"name": "npz", "path": str(data)},
            "partition": {"name": "dirichlet", "alpha": 0.5, "min_train": 3},
            "method": method,
            "precision": "float64",
            "rounds": 4,
            "evaluate_every": 1,
            "clients": {"number": 6, "per_round": 3},
            "local": {"batch_size": 4, "lr": 0.002},
        },
        "machine": {"checkpoint_seconds": 1e6, "device": "cpu", "data": str(data.parent), **machine},
    }
    return check_sweep(content, plugins())


def numbers(data: Path, folder: Path, method: str, after: Any = lambda: None, **machine: Any) -> list[dict[str, Any]]:
    """The records of a run in a folder of its own; `after` is called after each round."""
    plan = sweep(data, method, **machine)
    (planned,) = plan.runs
    made = RunFolder(folder)
    made.plan(plan.on_disk(planned))
    life = begin(planned, plan.machine, plan.plugins, made)
    while not life.over:
        life.close(one_round(life.setting, life.done + 1), lambda: False)
        after()
    return [{key: value for key, value in record.items() if key not in (*MEASURED, "run")} for record in made.records()]


@pytest.mark.slow  # tracing takes its time
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_compiled_after_the_first_round(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    counter = CompileCounterWithBackend("aot_eager")  # all of it but the C++ compiler, which takes its time
    monkeypatch.setattr(compiled, "BACKEND", counter)
    sizes: set[int] = set()
    forward = Backbone.forward

    def watched(self: Backbone, images: torch.Tensor, *more: Any, **named: Any) -> Any:
        sizes.add(len(images))
        return forward(self, images, *more, **named)

    monkeypatch.setattr(Backbone, "forward", watched)
    counts: list[int] = []
    found = numbers(data, tmp_path / "compiled", method, lambda: counts.append(counter.frame_count), compile=True)
    assert len(sizes) > 2  # else nothing is shown
    assert counts == [counts[0]] * 4
    assert 0 < counts[0] < 9  # the blocks share them
    plain = numbers(data, tmp_path / "plain", method)
    assert len(found) == len(plain) == 4
    for one, other in zip(found, plain, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == (pytest.approx(other[key], rel=1e-9) if isinstance(value, float) else other[key]), key


@pytest.mark.slow  # the C++ compiler is slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_with_the_backend_that_users_have(data: Path, tmp_path: Path) -> None:
    found, plain = (numbers(data, tmp_path / str(given), "pep_fedpt", compile=given) for given in (True, False))
    for one, other in zip(found, plain, strict=True):
        assert one["mean_accuracy"] == other["mean_accuracy"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-9)


@pytest.mark.slow
def test_the_benchmark_measures_it_beside_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    options = ["--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1", "--compile", "--json"]
    assert command.main([*options, str(tmp_path / "found.json")]) == 0
    (case,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert case["contenders"]["compiled"]["training"]["images_per_second"] > 0
    assert case["contenders"]["compiled"]["evaluation"]["times_bare_loop"] > 0
