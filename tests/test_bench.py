"""The benchmark on its smallest case: its results, the parts of a round, and baselines that do the same work."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbench import bench, data
from fedbench.bench import baselines, breakdown, clock
from fedbench.bench.cases import CASES, METHODS, World
from fedbench.plan.plugins import HOME, plugins
from fedbench.run import checkpoint, evaluation
from fedbench.run.server import Server

SMOKE = CASES["smoke@16"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(SMOKE, tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def experiment(world):
    return world.experiment({"name": "fedvpt"}, plugins(), "cpu", "float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of the GPU suite's command, here for the smallest case on the CPU."""
    folder = tmp_path_factory.mktemp("bench")
    paths = {name: folder / f"bench.{name}" for name in ("json", "png", "txt")}
    options = ["--suite", "gpu", "--device", "cpu", "--cases", "smoke@16", "--repeat", "2"]
    options += ["--methods", "fedvpt", "head_only", "fedncm", "--json", str(paths["json"])]
    assert bench.main([*options, "--figure", str(paths["png"]), "--profile", str(paths["txt"])]) == 0
    return paths


def test_the_result_holds_measurements_and_conditions(files):
    result = json.loads(files["json"].read_text())
    assert result["precision"] == "bfloat16"
    assert result["torch"] == torch.__version__
    assert result["threads"] == torch.get_num_threads()
    assert {"commit", "device", "python"} <= result.keys()
    (case,) = result["cases"]
    assert (case["clients"], case["batch_size"], case["images"]) == (3, 4, 24)
    assert set(case["baselines"]) == {"bare loop", "published loop", "one by one"}
    fedvpt, head, ncm = (case["methods"][name] for name in ("fedvpt", "head_only", "fedncm"))
    for what in ("training", "evaluation"):
        measured = fedvpt[what]
        assert measured["images_per_second"] == pytest.approx(24 / measured["seconds"])
        assert measured["peak_memory_bytes"] > 1 << 20
        done = measured["multiply_adds_per_image"] * measured["images_per_second"]
        assert measured["fraction"] == pytest.approx(done / case["matrix_multiply_adds_per_second"])
        assert measured["times_bare_loop"] > 0
    assert fedvpt["training"]["times_published_loop"] > 0
    assert "fraction" not in head["training"], "its features are cached: it never enters the backbone"
    assert "training" not in ncm, "it trains nothing"
    assert set(ncm["round"]) == {*breakdown.PARTS, "whole", "unwatched"}


def test_figure_and_profile_are_written(files):
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "aten::addmm" in files["txt"].read_text()


def test_watched_work_is_done_by_one_thread(experiment):
    """The parts of a round must not overlap."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with breakdown.watched(torch.device("cpu")):
            watched = experiment.model.thread_map(lambda _: (time.sleep(0.01), threading.get_ident())[1], range(4))
        assert set(watched) == {threading.get_ident()}
        assert threading.get_ident() not in experiment.model.thread_map(lambda _: threading.get_ident(), range(4))
    finally:
        torch.set_num_threads(before)


def test_the_profile_includes_threads(world, tmp_path):
    experiment = world.experiment({"name": "fedvpt"}, plugins(), "cpu", "float32", chunk_images=4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        breakdown.profile(experiment, tmp_path, tmp_path / "table.txt")
    finally:
        torch.set_num_threads(before)
    assert "_FrozenBlockBackward" in (tmp_path / "table.txt").read_text()


def test_the_parts_sum_to_the_round(experiment, tmp_path):
    parts = breakdown.seconds(experiment, tmp_path, rounds=3)
    assert sum(parts[part] for part in breakdown.PARTS) == pytest.approx(parts["whole"], rel=0.03)
    assert all(parts[part] > 0 for part in breakdown.PARTS)


PLANTED = {
    "data": (data, "batches"),
    "forward": (torch.nn.functional, "cross_entropy"),
    "backward": (torch.autograd, "grad"),
    "optimiser": (torch.optim.SGD, "step"),
    "aggregation": (Server, "merge"),
    "evaluation": (evaluation, "accuracies"),
    "checkpoint": (checkpoint, "save_file"),
}


@pytest.mark.parametrize("part", breakdown.PARTS)
def test_time_counts_for_the_part_that_spent_it(part, experiment, tmp_path, monkeypatch):
    """The clock moves only inside one function of the round."""
    now = [0.0]
    owner, name = PLANTED[part]
    function = getattr(owner, name)

    def slow(*args, **options):
        now[0] += 1
        return function(*args, **options)

    monkeypatch.setattr(owner, name, slow)
    monkeypatch.setattr(breakdown.time, "perf_counter", lambda: now[0])
    with breakdown.watched(torch.device("cpu")) as stopwatch:
        breakdown.whole_round(experiment, tmp_path)
    assert now[0] >= 1
    assert stopwatch.parts == {**dict.fromkeys(breakdown.PARTS, 0.0), part: now[0]}


def test_every_timed_function_exists_and_is_restored():
    def functions():
        owners = []
        for _, module, path in breakdown.TIMED:
            owner = sys.modules[module]
            for step in path.split("."):
                owner = getattr(owner, step)
            owners.append(owner)
        return owners

    before = functions()
    with breakdown.watched(torch.device("cpu")):
        assert all(a is not b for a, b in zip(before, functions(), strict=True))
    assert functions() == before


def test_baselines_have_the_same_model_and_images(world, experiment):
    """fedbench's logits are the plain timm model's, and its images those of the Pillow transforms."""
    part = torch.from_numpy(world.parts[1])
    values = experiment.server.send(torch.tensor([1]))
    model = baselines.Prompted(world.vit())
    with torch.no_grad():
        for theirs, name in (
            (model.prompt, "prompt"),
            (model.head.weight, "head.weight"),
            (model.head.bias, "head.bias"),
        ):
            theirs.copy_(values[name][0])
        pixels = experiment.model.images.batch(part)
        ours = experiment.model.forward(values, part[None], add_prior=False).logits[0]
        torch.testing.assert_close(ours, model(pixels), rtol=1e-4, atol=1e-5)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (experiment.model.backbone.mean, experiment.model.backbone.std)
    )
    plain = (torch.from_numpy(world.images[part.numpy()]).permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(pixels, plain)
    assert np.array_equal(np.sort(experiment.split.train[1]), world.parts[1])


def test_the_published_loop_trains_every_client_from_the_server(world, monkeypatch):
    steps, starts = [], []
    step, load = torch.optim.SGD.step, baselines.Prompted.load_state_dict
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: (steps.append(1), step(self, *a))[1])
    monkeypatch.setattr(
        baselines.Prompted,
        "load_state_dict",
        lambda self, state: (starts.append(state["prompt"].clone()), load(self, state)),
    )
    epoch = baselines.published(world, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    assert epoch() == SMOKE.images
    epoch()
    assert len(steps) == 2 * SMOKE.clients * (SMOKE.each // SMOKE.batch_size)
    first, second = starts[: SMOKE.clients], starts[SMOKE.clients :]
    assert all(torch.equal(start, first[0]) for start in first)
    assert all(torch.equal(start, second[0]) for start in second)
    assert not torch.equal(first[0], second[0])


def test_workloads_take_turns_and_ratios_are_medians():
    order = []
    seconds = clock.alternate({name: lambda name=name: order.append(name) for name in "ab"}, 3, torch.device("cpu"))
    assert order == list("abbaab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert clock.times_faster([1.0, 2.0, 1.0], [3.0, 2.0, 40.0]) == 3.0


def test_peak_memory_is_that_of_the_work():
    device = torch.device("cpu")
    small = clock.peak(lambda: None, device)
    large = clock.peak(lambda: torch.ones(100 << 20), device)
    assert large > small + (300 << 20)
    if sys.platform == "linux":  # the kernel lets a process forget
        assert clock.peak(lambda: None, device) < large - (300 << 20)


def test_training_calls_python_as_often_for_many_images_as_for_few(tmp_path):
    """No Python code runs per image: with one batch a client, the batch size changes the tensors only."""

    def calls(each):
        folder = tmp_path / str(each)
        folder.mkdir()
        case = dataclasses.replace(SMOKE, each=each, batch_size=each)
        experiment = World.make(case, folder).experiment({"name": "fedvpt"}, plugins(), "cpu", "float32")
        experiment.train(experiment.cohort_of(1), 0.01, 1)
        count = [0]

        def count_calls(frame, event, argument):
            count[0] += event == "call"

        sys.setprofile(count_calls)
        try:
            experiment.train(experiment.cohort_of(1), 0.01, 1)
        finally:
            sys.setprofile(None)
        return count[0]

    assert 100 < calls(4) == calls(12)


def result(commit="a", rate=10.0, seconds=2.0, case="nano@32", **ground):
    figures = {"training": {"images_per_second": rate}, "round": {"unwatched": seconds}}
    return {"commit": commit, "device": "x", **ground, "cases": [{"case": case, "methods": {"fedvpt": figures}}]}


def test_two_results_are_compared(tmp_path, capsys):
    for name, made in (("old", result()), ("new", result("b", 25.0, 1.0, threads=4)), ("other", result(case="x"))):
        (tmp_path / name).write_text(json.dumps(made))
    old, new, other = (str(tmp_path / name) for name in ("old", "new", "other"))
    assert bench.main(["--compare", old, new]) == 0
    table = capsys.readouterr().out
    assert "| nano@32 | fedvpt | training | 10 images/s | 25 images/s | 2.50 |" in table
    assert "| nano@32 | fedvpt | round | 0.5 1/s | 1 1/s | 2.00 |" in table
    assert "different threads: None and 4" in table
    assert bench.main(["--compare", old, other]) == 2
    assert "nothing" not in capsys.readouterr().out
    assert bench.main(["--compare", old, str(tmp_path / "absent")]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cases", "nano@33"], "no case nano@33; legal: smoke@16, nano@32"),
        (["--methods", "fedvtp"], "no method fedvtp; legal: "),
        (["--figure", "x.gif"], "expected .png or .pdf"),
        (["--repeat", "0"], "expected 1 or more"),
        (["--device", "cuda:99x"], "expected auto, cpu, cuda or cuda:N"),
        (["--against", "no-such-commit"], "no-such-commit"),
    ],
)
def test_mistakes_on_the_command_line_are_reported(options, words, capsys):
    assert bench.main(options) == 2
    assert words in capsys.readouterr().err


def test_the_default_methods_exist():
    assert set(METHODS) <= set(plugins().classes["method"])


@pytest.mark.slow
def test_two_commits_are_measured_in_turn(tmp_path):
    """HEAD in a worktree and this tree, by the command."""
    command = [sys.executable, "-m", "fedbench.bench", "--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1"]
    command += ["--against", "HEAD", "--json", str(tmp_path / "new.json")]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    assert "| smoke@16 | fedvpt | training | " in done.stdout
    assert json.loads((tmp_path / "new.json").read_text())["cases"][0]["case"] == "smoke@16"
    trees = subprocess.run(["git", "worktree", "list"], cwd=HOME, capture_output=True, text=True, check=True).stdout
    assert not [line for line in trees.splitlines() if Path(line.split()[0]).name == "tree"]
