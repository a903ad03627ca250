"""Whole runs against their replay: every column of every record, the clients' table and the checkpoint, from outside."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from oracle import laws, plain_vit
from oracle.replay import Replay
from safetensors import safe_open

from fedbench.base.records import RunFolder
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.simulation import run_rounds

ROOT = Path(__file__).resolve().parents[2]
CLIENTS, HELD_OUT, PER_ROUND, ROUNDS, SEED = 14, 2, 4, 3, 3
PARTITION = {"name": "dirichlet", "alpha": 0.6, "balanced": False, "min_train": 2}
CLIENT_BLOCK = {"number": CLIENTS, "per_round": PER_ROUND, "held_out": HELD_OUT, "validation": 0.2}


@dataclass
class World:
    """The files of all runs, and what they hold."""

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    vit: plain_vit.PlainViT
    weights_hash: str
    split: laws.Split


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Noisy images of four shades for uneven clients, of which one takes part for the first time in the last round."""
    folder, draw = tmp_path_factory.mktemp("world"), np.random.default_rng(4)
    labels = np.arange(184) % 4
    images = draw.integers(0, 200, (len(labels), 32, 32, 3)) + 18 * labels[:, None, None, None]
    images, is_test = images.astype(np.uint8), np.arange(len(labels)) % 23 < 9
    np.savez(folder / "tiny.npz", images=images, labels=labels, is_test=is_test)
    state = plain_vit.write_weights(folder / "weights.safetensors")
    split = laws.split(
        labels,
        is_test,
        SEED,
        clients=CLIENTS,
        alpha=PARTITION["alpha"],
        min_train=PARTITION["min_train"],
        held_out=HELD_OUT,
        validation=CLIENT_BLOCK["validation"],
    )
    return World(folder, images, labels, is_test, plain_vit.PlainViT(state), plain_vit.weights_hash(state), split)


@dataclass
class Case:
    """A method under a recipe, and how a record names what differs from the defaults."""

    method: dict[str, Any]
    aggregation: dict[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    shown: str = "fedavg"
    local: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


PEP = {"name": "pep_fedpt", "prompt_length": 2, "class_prompt_lr_scale": 5.0}
CASES = {
    "sgd": Case(
        {"name": "fedvpt", "prompt_length": 3, "prompt_lr_scale": 4.0},
        local={"momentum": 0.7, "weight_decay": 0.1, "lr_decay": 0.5, "clip": 1.5, "lr": 0.05},
    ),
    "fedprox and adam": Case(
        {"name": "fedvpt", "prompt_length": 3, "finetune_epochs": 1},
        {"name": "fedprox", "mu": 3.0},
        "fedprox(mu=3.0)",
        {"optimizer": "adam", "weight_decay": 0.3, "lr": 0.02},
    ),
    "local prompts and adamw": Case(
        {"name": "fedvpt", "prompt_length": 2, "prompt": "local"},
        {"name": "scaffold", "lr": 0.8},
        "scaffold(lr=0.8)",
        {"optimizer": "adamw", "weight_decay": 0.3, "lr": 0.02, "augment": "crop_flip"},
    ),
    "prior in training": Case(
        {"name": "head_only", "logit_prior": "train"},
        {"name": "scaffold"},
        "scaffold",
        more={"seeds": {"cohort": 8, "init": 9, "batches": 10}},
    ),
    "prior in evaluation": Case({"name": "head_only", "logit_prior": "eval"}, local={"augment": "flip"}),
    "both priors": Case({"name": "head_only", "logit_prior": "both"}, local={"clip": 0.5}),
    "query final": Case({**PEP, "average": "class_counts", "class_prompt_length": 2, "inject": 4}),
    "query inject": Case(
        {**PEP, "query": "inject", "momentum": 0.6, "prototypes": "shuffled", "temperature": 0.3},
        {"name": "fedprox", "mu": 0.5},
        "fedprox(mu=0.5)",
        {"lr_decay": 0.8},
    ),
    "euclidean without prior": Case({**PEP, "similarity": "euclidean", "prior": "uniform", "inject": 0}),
}


def config(world: World, case: Case) -> dict[str, Any]:
    return {
        "backbone": {"name": plain_vit.NAME, "weights": str(world.folder / "weights.safetensors"), "image_size": 32},
        "dataset": {"name": "npz", "path": str(world.folder / "tiny.npz")},
        "partition": PARTITION,
        "method": case.method | {"label": "the oracle's"},
        "aggregation": case.aggregation,
        "seed": SEED,
        "rounds": ROUNDS,
        "evaluate_every": 1,
        "clients": CLIENT_BLOCK,
        "local": {"epochs": 2, "batch_size": 4, "lr": 0.1} | case.local,
        "precision": "float64",
    } | case.more


@pytest.fixture(scope="module", params=CASES)
def outcome(request: pytest.FixtureRequest, world: World) -> tuple[Case, RunFolder, float]:
    """A case's run, which fedbench has done, and the seconds that it took."""
    case = CASES[request.param]
    machine = {"checkpoint_seconds": 0, "data": str(world.folder), "device": "cpu"}
    sweep = check_sweep({"base": config(world, case), "machine": machine}, plugins())
    (planned,) = sweep.runs
    folder = RunFolder(world.folder / planned.name)
    folder.plan(sweep.on_disk(planned))
    start = time.monotonic()
    run_rounds(planned, sweep.machine, sweep.plugins, folder)
    return case, folder, time.monotonic() - start


def facts(world: World, case: Case, folder: RunFolder, seeds: dict[str, int]) -> dict[str, Any]:
    """What every record repeats."""
    identity = hashlib.sha256(json.dumps(folder.config()["identity"], sort_keys=True).encode()).hexdigest()
    method = case.method
    trained = 4 * 64 + 4
    trained += 64 * method.get("prompt_length", 0) * (method["name"] != "head_only")
    trained += 64 * 4 * method.get("class_prompt_length", 1) * (method["name"] == "pep_fedpt")
    cohorts = [laws.cohort(seeds["cohort"], world.split.held_out, PER_ROUND, r) for r in range(1, ROUNDS + 1)]
    tokens = 5
    if method["name"] != "head_only":
        tokens += method["prompt_length"]
    if method["name"] == "pep_fedpt":
        tokens += method.get("class_prompt_length", 1)
    return {
        "run": f"{method['name']}-npz-dirichlet-s{SEED}-{identity[:8]}",
        "key": identity[:8],
        "method": method["name"],
        "label": "the oracle's",
        "family": "global",
        "reference": method["name"] == "head_only",
        "dataset": "npz(path=tiny.npz)",
        "partition": "dirichlet(min_train=2, alpha=0.6, balanced=False)",
        "aggregation": case.shown,
        "backbone": "test_vit@32",
        "seed": SEED,
        "rounds": ROUNDS,
        "trained_parameters": trained,
        "config_hash": identity[:16],
        "partition_hash": world.split.hash,
        "data_hash": laws.data_hash(world.images, world.labels, world.is_test),
        "backbone_hash": world.weights_hash,
        # as many images as keep the MLP's single-precision activations in 4 MiB
        "chunk_images": (4 << 20) // (tokens * plain_vit.HIDDEN * 4),
        "cohort_hash": hashlib.sha256(np.concatenate(cohorts).astype("<i8").tobytes()).hexdigest()[:16],
        "commit": git_commit(),
        "code": code_hashes(method["name"], case.aggregation["name"]),
    }


def git_commit() -> str | None:
    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)

    head = git("rev-parse", "--short=12", "HEAD")
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if git("diff", "HEAD", "--quiet").returncode else "")


def code_hashes(method: str, aggregation: str) -> str:
    """Names and contents of the core's files that make numbers, and of the plug-ins."""

    def digest(paths: list[Path]) -> str:
        content = b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in sorted(paths))
        return hashlib.sha256(content).hexdigest()[:8]

    numeric = ("base", "method", "data", "sources", "vit", "plan", "run")
    core = [path for folder in numeric for path in (ROOT / "fedbench" / folder).rglob("*.py")]
    used = [
        "datasets/npz",
        "datasets/partitioners/dirichlet",
        f"methods/{method}",
        f"methods/aggregation/{aggregation}",
    ]
    return f"{digest(core)}-{digest([ROOT / f'{name}.py' for name in used])}"


def test_every_number_of_a_run_is_that_of_its_replay(world: World, outcome: tuple[Case, RunFolder, float]) -> None:
    case, folder, seconds = outcome
    records, run = folder.records(), folder.config()["run"]
    replay = Replay(run, world.images, world.labels, world.is_test, world.vit, world.split)
    taken: list[set[int]] = []
    repeated = facts(world, case, folder, replay.seed)
    before = 0.0
    for number, record in enumerate(records, 1):
        costs = replay.step()
        expected = repeated | {"round": number} | costs | replay.evaluate()
        measured = {name: record.pop(name) for name in ("seconds", "samples_per_second", "peak_memory_bytes")}
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            close = pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
            assert record[name] == close, (number, name)
        assert before < measured["seconds"] < seconds
        assert measured["samples_per_second"] * measured["seconds"] == pytest.approx(replay.images_seen, rel=0.05)
        assert 50 << 20 < measured["peak_memory_bytes"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = measured["seconds"]
        taken.append(set(laws.cohort(replay.seed["cohort"], world.split.held_out, PER_ROUND, number).tolist()))
    assert len(records) == ROUNDS
    assert taken[2] - taken[1] - taken[0]  # somebody is new in the last round
    table = pd.read_parquet(folder.path / "clients.parquet")
    assert list(table.columns) == list(replay.table)
    for name, column in replay.table.items():
        cells = [value.tolist() if isinstance(value, np.ndarray) else value for value in table[name]]
        assert cells == column, name
    compare_checkpoint(folder, replay)


def compare_checkpoint(folder: RunFolder, replay: Replay) -> None:
    """All values that survive the last round."""
    expected = {f"server.{name}": value for name, value in replay.server.items()}
    expected |= {f"client.{n}.{k}": value for n, rows in replay.memory.items() for k, value in rows.items()}
    if replay.scaffold:
        expected |= {f"server.c.{name}": value for name, value in replay.c.items()}
        expected |= {f"client.c_k.{n}.{k}": v for k, values in replay.c_k.items() for n, v in values.items()}
    if replay.name == "pep_fedpt":
        expected |= {"server.prototype": replay.prototype}
        if replay.method["query"] == "final":
            expected |= {"server.sum": replay.sum, "server.count": replay.count}
    with safe_open(folder.path / "checkpoint.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        assert file.metadata()["round"] == str(ROUNDS)
    assert set(np.flatnonzero(tensors.pop("introduced"))) == replay.introduced
    for name, total in replay.totals.items():
        assert tensors.pop(f"total.{name}") == total
    assert 0 < tensors.pop("total.seconds") < 600
    constant = {"server.1/N", "server.order"}
    assert tensors.keys() - constant == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(tensors[name], value, rtol=1e-7, atol=1e-10, err_msg=name)


def test_uneven_clients_and_parts_of_a_batch_are_among_them(world: World) -> None:
    sizes = [len(part) for part in world.split.train]
    assert len(set(sizes)) >= 5
    assert any(size % 4 for size in sizes)
    assert any(size < 4 for size in sizes)
    assert all(len(part) for part in (*world.split.validation, *world.split.test))
