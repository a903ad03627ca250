"""Whole runs give the same numbers if they are killed and resumed, with other methods in the sweep, and on other paths."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedbench.base import process_cache
from fedbench.base.records import MEASURED, RunFolder
from fedbench.plan.config import Sweep
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import HOME, plugins
from fedbench.run import checkpoint
from fedbench.run.simulation import Diverged, Stopped, begin, run_rounds
from fedbench.vit import backbone, features

REQUIRED = """run method dataset partition seed round mean_accuracy worst_accuracy p10_accuracy bottom_decile_accuracy
std_accuracy pooled_accuracy global_accuracy held_out_mean_accuracy held_out_worst_accuracy val_mean_accuracy train_loss
bytes_up bytes_down trained_parameters multiply_adds samples_per_second seconds peak_memory_bytes config_hash
partition_hash cohort_hash backbone_hash data_hash commit key label aggregation backbone rounds reference
total_bytes_up total_bytes_down total_multiply_adds""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images of 4 classes that differ in brightness and colour, 40 of them test images."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    labels = np.arange(160) % 4
    shade = np.array([[60, 60, 180], [60, 180, 60], [180, 60, 60], [160, 160, 160]])[labels][:, None, None]
    images = np.random.default_rng(0).integers(-50, 50, (160, 32, 32, 3)) + shade
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), labels=labels, is_test=np.arange(160) % 16 < 4)
    return path


def sweep(data: Path, methods: list[Any], grid: dict[str, Any] | None = None, **base: Any) -> Sweep:
    content = {
        "base": {
            "dataset": {"name": "npz", "path": str(data)},
            "partition": {"name": "dirichlet", "alpha": 1.0, "min_train": 4},
            "rounds": 4,
            "evaluate_every": 2,
            "clients": {"number": 6, "per_round": 3, "held_out": 1},
            "local": {"batch_size": 8, "lr": 0.05},
            **base,
        },
        "grid": {"method": methods, **(grid or {})},
        "machine": {"checkpoint_seconds": 0, "data": str(data.parent)},
    }
    return check_sweep(content, plugins())


def run(planned: Any, sweep: Sweep, results: Path, **machine: Any) -> RunFolder:
    folder = RunFolder(results / planned.name)
    folder.plan(sweep.on_disk(planned))
    run_rounds(planned, sweep.machine.model_copy(update=machine), sweep.plugins, folder)
    return folder


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    """The records without what a clock says."""
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in folder.records()]


def test_a_record_stands_alone(data, tmp_path):
    planned = sweep(data, ["fedvpt"]).runs[0]
    folder = run(planned, sweep(data, ["fedvpt"]), tmp_path)
    records = folder.records()
    assert [record["round"] for record in records] == [2, 4]
    for record in records:
        assert set(REQUIRED) <= record.keys()
        for name in REQUIRED:
            if name.endswith("accuracy") and record[name] is not None:
                assert 0 <= record[name] <= 1, name
        assert record["held_out_mean_accuracy"] is not None
        # 8 prompt tokens and the head's weight and bias, 4 bytes each, both ways, for 3 clients
        assert record["trained_parameters"] == 8 * 128 + 4 * 128 + 4
        assert record["bytes_up"] == record["bytes_down"] == 3 * 4 * record["trained_parameters"]
    assert records[1]["total_bytes_up"] == 4 * records[1]["bytes_up"]
    clients = pd.read_parquet(folder.path / "clients.parquet")
    assert len(clients) == 6
    assert clients.held_out.sum() == 1
    inside = clients[~clients.held_out]
    assert records[-1]["mean_accuracy"] == pytest.approx(inside.accuracy.mean())
    assert records[-1]["worst_accuracy"] == pytest.approx(inside.accuracy.min())
    pooled = (inside.accuracy * inside.test_samples).sum() / inside.test_samples.sum()
    assert records[-1]["pooled_accuracy"] == pytest.approx(pooled)


def test_every_method_sees_the_same_clients_cohorts_and_start(data, tmp_path):
    plan = sweep(data, ["head_only", "fedvpt", "pep_fedpt", {"name": "fedvpt", "prompt": "local"}, "fedncm"])
    records = [numbers(run(planned, plan, tmp_path))[-1] for planned in plan.runs]
    for name in ("partition_hash", "cohort_hash", "data_hash", "backbone_hash"):
        assert len({record[name] for record in records}) == 1, name

    from fedbench.run.experiment import build

    settings = [build(planned, plan.machine, plan.plugins) for planned in plan.runs[1:3]]
    first, other = (setting.server.values for setting in settings)
    for name in ("prompt", "head.weight"):
        assert (first[name] == other[name]).all(), name


def test_seed_zero_is_a_seed_and_streams_can_vary_alone(data, tmp_path):
    grid = {"seed": [0, 1], "seeds": [{}, {"partition": 7}, {"partition": 0}, {"cohort": 0}, {"batches": 0}]}
    plan = sweep(data, ["head_only"], grid)
    records = {}
    for planned in plan.runs:
        (override,) = [*planned.run.seeds.model_dump(exclude_none=True).items()] or [("none", None)]
        records[planned.run.seed, *override] = numbers(run(planned, plan, tmp_path))[-1]

    def equal(column: str, first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
        return bool(records[first][column] == records[second][column])

    plain = [(seed, "none", None) for seed in (0, 1)]
    for column in ("partition_hash", "cohort_hash", "train_loss"):
        assert not equal(column, *plain), column
        assert equal(column, plain[0], (0, "partition", 0)), column  # zero is not taken for "no seed"
    assert equal("partition_hash", (0, "partition", 7), (1, "partition", 7))
    assert not equal("partition_hash", (0, "partition", 7), plain[0])
    assert equal("partition_hash", plain[0], (1, "partition", 0))
    assert equal("partition_hash", plain[1], (1, "cohort", 0))
    assert not equal("cohort_hash", plain[1], (1, "cohort", 0))
    for column in ("partition_hash", "cohort_hash"):
        assert equal(column, plain[1], (1, "batches", 0)), column
    assert not equal("train_loss", plain[1], (1, "batches", 0))


@pytest.mark.parametrize("method", [pytest.param("fedvpt", marks=pytest.mark.slow), "pep_fedpt"])
def test_the_loop_twin_agrees(data, tmp_path, method):
    plan = sweep(data, [method], precision="float64")
    stacked = numbers(run(plan.runs[0], plan, tmp_path / "stacked"))
    loop = numbers(run(plan.runs[0], plan, tmp_path / "loop", clients="loop", chunk_images=16))
    for a, b in zip(stacked, loop, strict=True):
        assert a == pytest.approx(b, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"name": "fedvpt", "prompt": "local"}, "pep_fedpt"])
def test_killed_at_a_random_round_gives_the_same_numbers(data, tmp_path, method):
    """SIGKILL of the job's process, twice, at rounds drawn from the clock; then the records are those of a quiet run."""
    plan = sweep(data, [method], rounds=30, evaluate_every=5)
    planned = plan.runs[0]
    quiet = RunFolder(tmp_path / "quiet" / planned.name)
    stormy = RunFolder(tmp_path / "stormy" / planned.name)
    for folder in (quiet, stormy):
        folder.plan(plan.on_disk(planned))
    start(quiet).wait()
    assert quiet.status == "done"
    killed = 0
    for _ in range(2):
        process = start(stormy)
        wanted = random.randint(1, 10) + stormy.progress().get("round", 0)
        while process.poll() is None and stormy.progress().get("round", 0) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 2, "the run ended before it could be killed"
    assert stormy.status == "running"
    assert start(stormy).wait() == 0
    assert stormy.status == "done"
    assert numbers(stormy) == numbers(quiet)
    assert (stormy.path / "clients.parquet").read_bytes() == (quiet.path / "clients.parquet").read_bytes()


def start(folder: RunFolder) -> subprocess.Popen[bytes]:
    """The job as a scheduler starts it."""
    command = [sys.executable, "-m", "fedbench.jobs.job", str(folder.path.parent), folder.path.name]
    return subprocess.Popen(command, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_torn_checkpoint_falls_back_to_the_one_before(data, tmp_path):
    plan = sweep(data, ["fedvpt"])
    whole = run(plan.runs[0], plan, tmp_path / "whole")
    torn = RunFolder(tmp_path / "torn" / plan.runs[0].name)
    torn.plan(plan.on_disk(plan.runs[0]))
    run_rounds(plan.runs[0], plan.machine, plan.plugins, torn)
    newest = torn.path / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    with open(torn.path / "records.jsonl", "a") as file:
        file.write('{"round": 4, "half a li')
    state = begin(plan.runs[0], plan.machine, plan.plugins, torn)
    assert state.rounds_done == 3  # of 4: not from the first round on, which would give the same numbers too
    assert [record["round"] for record in torn.records()] == [2]
    run_rounds(plan.runs[0], plan.machine, plan.plugins, torn)
    assert numbers(torn) == numbers(whole)


def test_a_diverged_run_has_no_number(data, tmp_path):
    plan = sweep(data, ["fedvpt"], local={"lr": 1e30, "batch_size": 8})
    with pytest.raises(Diverged, match=r"round \d of 4"):
        run(plan.runs[0], plan, tmp_path)
    assert all(np.isfinite(record["train_loss"]) for record in numbers(RunFolder(tmp_path / plan.runs[0].name)))


@pytest.mark.slow
def test_statistics_are_reported_once(data, tmp_path):
    """PEP-FedPT's prototypes of the prompt-free feature: 128 sums, a count and twice the class's number (4 bytes each) for
    each class that a client has, when it first takes part; all 4 rows without numbers where that is less."""
    from fedbench.run.experiment import build

    plan = sweep(data, ["pep_fedpt", "fedvpt"], rounds=10, evaluate_every=1)
    pep, vpt = (numbers(run(planned, plan, tmp_path)) for planned in plan.runs)
    parameters = {r["trained_parameters"] for r in pep}
    assert parameters == {vpt[0]["trained_parameters"] + 4 * 128}
    total = sum(r["bytes_up"] for r in pep) - 10 * 3 * 4 * parameters.pop()
    setting = build(plan.runs[0], plan.machine, plan.plugins)
    parts = [part for part, out in zip(setting.split.train, setting.split.held_out, strict=True) if not out]
    classes = [len(set(setting.samples.labels[part])) for part in parts]
    assert len(classes) == 5  # five clients train; the sixth is held out
    assert total == sum(min(n * 4 * 129, 4 * 4 * 128) + min(n * 8, 16) for n in classes)


def test_held_out_clients_never_train(data, tmp_path):
    from fedbench.run.experiment import build

    plan = sweep(data, ["fedvpt"])
    setting = build(plan.runs[0], plan.machine, plan.plugins)
    out = set(np.flatnonzero(setting.split.held_out).tolist())
    assert len(out) == 1
    assert all(out.isdisjoint(setting.cohort_of(r).tolist()) for r in range(1, 50))


def test_cached_features_are_those_of_the_backbone(data, tmp_path):
    from fedbench.run.experiment import build

    plan = sweep(data, ["head_only"], precision="float64")
    machine = plan.machine.model_copy(update={"data": tmp_path})
    process_cache.clear()
    built = build(plan.runs[0], machine, plan.plugins)
    index = torch.arange(0, 160, 7)
    direct = built.model.backbone(built.model.images.batch(index))[0]["cls"]
    assert (built.model.features[index] - direct).abs().max() < 1e-9
    process_cache.clear()


@pytest.mark.parametrize("damage", [b"half a file", b"", None])
def test_a_damaged_feature_cache_is_made_again_and_a_whole_one_is_read(data, tmp_path, monkeypatch, damage):
    from fedbench.run.experiment import build

    computed, before = [], features._compute
    monkeypatch.setattr(features, "_compute", lambda *arguments: computed.append(1) or before(*arguments))
    plan = sweep(data, ["head_only"], precision="float64")
    machine = plan.machine.model_copy(update={"data": tmp_path})
    process_cache.clear()
    expected = build(plan.runs[0], machine, plan.plugins).model.features
    (path,) = (tmp_path / "features").rglob("*.npy")
    content = path.read_bytes()
    if damage is not None:
        path.write_bytes(damage)
    process_cache.clear()  # as in another process, which has nothing but the file
    assert (build(plan.runs[0], machine, plan.plugins).model.features == expected).all()
    assert len(computed) == (1 if damage is None else 2)
    (path,) = (tmp_path / "features").rglob("*.npy")
    assert path.read_bytes() == content
    process_cache.clear()


def test_run_yaml_is_plain(data, tmp_path):
    plan = sweep(data, ["fedvpt"])
    folder = RunFolder(tmp_path / plan.runs[0].name)
    folder.plan(plan.on_disk(plan.runs[0]))
    assert json.loads(json.dumps(folder.config())) == folder.config()


@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_rounded_products_are_the_runs_choice(data, tmp_path, precision):
    plan = sweep(data, ["head_only"], precision=precision)
    run(plan.runs[0], plan, tmp_path)
    rounded = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert rounded == ((precision == "tf32"),) * 2


@pytest.mark.parametrize("method", ["fedvpt", "head_only"])
def test_shortcuts_change_no_number(data, tmp_path, method):
    plan = sweep(data, [method], precision="float64")
    short, whole = (
        run(plan.runs[0], plan, tmp_path / str(shortcuts), shortcuts=shortcuts) for shortcuts in (True, False)
    )
    for fast, slow in zip(numbers(short), numbers(whole), strict=True):
        assert fast["mean_accuracy"] == slow["mean_accuracy"]
        assert fast["train_loss"] == pytest.approx(slow["train_loss"], rel=1e-9)


LATE = {"name": "pep_fedpt", "prompt_length": 0, "inject": 3}


@pytest.mark.parametrize(
    "method", [pytest.param("fedvpt", marks=pytest.mark.slow), "head_only", pytest.param(LATE, marks=pytest.mark.slow)]
)
def test_without_shortcuts_a_wrong_shortcut_is_seen(data, tmp_path, monkeypatch, method):
    """Nothing that was computed with a shortcut is read without, not from a cache on disk either."""
    plan = sweep(data, [method], precision="float64", rounds=1, evaluate_every=1)
    losses, right = {}, backbone.leading
    for wrong in (False, True):
        with monkeypatch.context() as patch:
            if wrong:
                # of the tokens that are read, other numbers
                patch.setattr(backbone, "leading", lambda *args: right(*args).roll(1, -1))
            process_cache.clear()  # the two runs of a process share neither its cache nor the one on disk
            for shortcuts in (True, False):
                words = {"shortcuts": shortcuts, "data": tmp_path / f"data-{wrong}"}
                folder = run(plan.runs[0], plan, tmp_path / f"{wrong}-{shortcuts}", **words)
                losses[wrong, shortcuts] = numbers(folder)[-1]["train_loss"]
    process_cache.clear()
    assert losses[True, False] == losses[False, False]
    assert abs(losses[True, True] - losses[True, False]) > 1e-3


def test_a_resumed_run_continues_its_counts(data, tmp_path):
    """Seconds and costs of all executions add up; images per second are those of the present one."""
    plan = sweep(data, ["head_only"], evaluate_every=1)
    folder = RunFolder(tmp_path / plan.runs[0].name)
    folder.plan(plan.on_disk(plan.runs[0]))
    with pytest.raises(Stopped):
        run_rounds(plan.runs[0], plan.machine, plan.plugins, folder, lambda: len(folder.records()) == 1)
    saved = checkpoint.load(folder.path)
    assert saved.round == 2
    before = folder.records()[-1]
    assert before["seconds"] <= saved.seconds < before["seconds"] + 60
    checkpoint.save(folder.path, saved.state, saved.round, saved.totals, 5000.0)
    ticks = iter(range(1000))
    state = begin(plan.runs[0], plan.machine, plan.plugins, folder, clock=lambda: float(next(ticks)))
    assert (state.rounds_done, state.totals, state.meter.images) == (2, saved.totals, 0)
    assert state.meter.seconds == 5001.0  # one tick since it began
    state.meter.count(60)
    assert state.meter.rate == 60 / 2
    run_rounds(plan.runs[0], plan.machine, plan.plugins, folder)
    last = folder.records()[-1]
    assert 5000 < last["seconds"] < 5100
    assert last["total_bytes_up"] == 4 * before["bytes_up"]
    assert last["total_multiply_adds"] == sum(record["multiply_adds"] for record in folder.records())
    assert last["samples_per_second"] > 1  # of this execution: over all 5,000 seconds it would be a fraction


def test_a_method_without_clients_sends_nothing(data, tmp_path):
    plan = sweep(data, ["central_vpt"], rounds=1, evaluate_every=1)
    (record,) = run(plan.runs[0], plan, tmp_path).records()
    assert (record["bytes_up"], record["bytes_down"], record["total_bytes_up"], record["total_bytes_down"]) == (0,) * 4
