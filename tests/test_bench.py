"""The benchmark on its smallest case: what it says, that a round's parts are its parts, that contenders do the same."""

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
from fedbench.bench import breakdown, clock, contenders
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
    """What the GPU's command writes, here of the smallest case on the CPU."""
    folder = tmp_path_factory.mktemp("bench")
    found = {name: folder / f"bench.{name}" for name in ("json", "png", "txt")}
    options = ["--suite", "gpu", "--device", "cpu", "--cases", "smoke@16", "--repeat", "2"]
    options += ["--methods", "fedvpt", "head_only", "fedncm", "--json", str(found["json"])]
    assert bench.main([*options, "--figure", str(found["png"]), "--profile", str(found["txt"])]) == 0
    return found


def test_the_result_says_what_was_measured_where(files):
    result = json.loads(files["json"].read_text())
    assert result["precision"] == "bfloat16"
    assert result["torch"] == torch.__version__
    assert result["threads"] == torch.get_num_threads()
    assert {"commit", "device", "python"} <= result.keys()
    (case,) = result["cases"]
    assert (case["clients"], case["batch_size"], case["images"]) == (3, 4, 24)
    assert set(case["contenders"]) == {"bare loop", "published loop", "one by one"}
    fedvpt, head, ncm = (case["methods"][name] for name in ("fedvpt", "head_only", "fedncm"))
    for what in ("training", "evaluation"):
        one = fedvpt[what]
        assert one["images_per_second"] == pytest.approx(24 / one["seconds"])
        assert one["peak_memory_bytes"] > 1 << 20
        done = one["multiply_adds_per_image"] * one["images_per_second"]
        assert one["fraction"] == pytest.approx(done / case["matrix_multiply_adds_per_second"])
        assert one["times_bare_loop"] > 0
    assert fedvpt["training"]["times_published_loop"] > 0
    assert "fraction" not in head["training"], "its features are cached: it never enters the backbone"
    assert "training" not in ncm, "it trains nothing"
    assert set(ncm["round"]) == {*breakdown.PARTS, "whole", "unwatched"}


def test_figure_and_profile_are_written(files):
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "aten::addmm" in files["txt"].read_text()


def test_watched_work_is_done_by_one_thread(experiment):
    """Two at once would have no parts of one round."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with breakdown.watched(torch.device("cpu")):
            watched = experiment.model.thread_map(lambda _: (time.sleep(0.01), threading.get_ident())[1], range(4))
        assert set(watched) == {threading.get_ident()}
        assert threading.get_ident() not in experiment.model.thread_map(lambda _: threading.get_ident(), range(4))
    finally:
        torch.set_num_threads(before)


def test_the_profile_sees_what_threads_do(world, tmp_path):
    experiment = world.experiment({"name": "fedvpt"}, plugins(), "cpu", "float32", chunk_images=4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        breakdown.profile(experiment, tmp_path, tmp_path / "table.txt")
    finally:
        torch.set_num_threads(before)
    assert "_ThroughBackward" in (tmp_path / "table.txt").read_text()


def test_the_parts_sum_to_the_round(experiment, tmp_path):
    found = breakdown.seconds(experiment, tmp_path, rounds=3)
    assert sum(found[part] for part in breakdown.PARTS) == pytest.approx(found["whole"], rel=0.03)
    assert all(found[part] > 0 for part in breakdown.PARTS)


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
def test_seconds_are_found_where_they_were_spent(part, experiment, tmp_path, monkeypatch):
    """On a clock that moves only inside one function of the round."""
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


def test_every_function_that_is_timed_is_there_and_comes_back():
    def functions():
        found = []
        for _, module, path in breakdown.TIMED:
            owner = sys.modules[module]
            for step in path.split("."):
                owner = getattr(owner, step)
            found.append(owner)
        return found

    before = functions()
    with breakdown.watched(torch.device("cpu")):
        assert all(a is not b for a, b in zip(before, functions(), strict=True))
    assert functions() == before


def test_contenders_have_the_same_model_and_images(world, experiment):
    """fedbench's logits are the plain timm model's, and its images those of the Pillow transforms."""
    part = torch.from_numpy(world.parts[1])
    values = experiment.server.send(torch.tensor([1]))
    model = contenders.Prompted(world.vit())
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
    seen, starts = [], []
    step, load = torch.optim.SGD.step, contenders.Prompted.load_state_dict
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: (seen.append(1), step(self, *a))[1])
    monkeypatch.setattr(
        contenders.Prompted,
        "load_state_dict",
        lambda self, state: (starts.append(state["prompt"].clone()), load(self, state)),
    )
    epoch = contenders.published(world, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    assert epoch() == SMOKE.images
    epoch()
    assert len(seen) == 2 * SMOKE.clients * (SMOKE.each // SMOKE.batch_size)
    first, second = starts[: SMOKE.clients], starts[SMOKE.clients :]
    assert all(torch.equal(start, first[0]) for start in first)
    assert all(torch.equal(start, second[0]) for start in second)
    assert not torch.equal(first[0], second[0])


def test_contenders_take_turns_and_ratios_are_medians():
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
    """No image is touched alone: with one batch a client, the batch's size changes nothing but the tensors."""

    def calls(each):
        folder = tmp_path / str(each)
        folder.mkdir()
        case = dataclasses.replace(SMOKE, each=each, batch_size=each)
        one = World.make(case, folder).experiment({"name": "fedvpt"}, plugins(), "cpu", "float32")
        one.train(one.cohort_of(1), 0.01, 1)
        count = [0]

        def count_calls(frame, event, argument):
            count[0] += event == "call"

        sys.setprofile(count_calls)
        try:
            one.train(one.cohort_of(1), 0.01, 1)
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
    told = capsys.readouterr().out
    assert "| nano@32 | fedvpt | training | 10 images/s | 25 images/s | 2.50 |" in told
    assert "| nano@32 | fedvpt | round | 0.5 1/s | 1 1/s | 2.00 |" in told
    assert "not the same threads: None and 4" in told
    assert bench.main(["--compare", old, other]) == 2
    assert "nothing" not in capsys.readouterr().out
    assert bench.main(["--compare", old, str(tmp_path / "absent")]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cases", "nano@33"], "no case nano@33; there are smoke@16, nano@32"),
        (["--methods", "fedvtp"], "no method fedvtp; there are "),
        (["--figure", "x.gif"], "expected .png or .pdf"),
        (["--repeat", "0"], "start at 1"),
        (["--device", "cuda:99x"], "expected auto, cpu, cuda or cuda:N"),
        (["--against", "no-such-commit"], "no-such-commit"),
    ],
)
def test_mistakes_are_told(options, words, capsys):
    assert bench.main(options) == 2
    assert words in capsys.readouterr().err


def test_the_short_list_is_of_the_roster():
    assert set(METHODS) <= set(plugins().classes["method"])


@pytest.mark.slow
def test_two_commits_are_measured_in_turn(tmp_path):
    """HEAD in a worktree, beside this tree, by the command."""
    command = [sys.executable, "-m", "fedbench.bench", "--cases", "smoke@16", "--methods", "fedvpt", "--repeat", "1"]
    command += ["--against", "HEAD", "--json", str(tmp_path / "new.json")]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    assert "| smoke@16 | fedvpt | training | " in done.stdout
    assert json.loads((tmp_path / "new.json").read_text())["cases"][0]["case"] == "smoke@16"
    trees = subprocess.run(["git", "worktree", "list"], cwd=HOME, capture_output=True, text=True, check=True).stdout
    assert not [line for line in trees.splitlines() if Path(line.split()[0]).name == "tree"]
