"""The report on one device: every part is written, and no part's failure costs another's results."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from fedbench import bench
from fedbench.bench import device_parts, device_report, goals
from fedbench.bench.device_report import Part, ReportOptions
from fedbench.method import Aggregation
from fedbench.plan.plugins import HOME, plugins
from fedbench.run import cost
from fedbench.run.server import parameters
from fedbench.vit import backbone
from fedbench.vit.compiled import padded_size

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_small_report_on_a_cpu_holds_every_part_and_the_sweep_goes_on_from_its_results(tmp_path, capsys):
    sweep = tmp_path / "two.yaml"
    content = {
        "base": {
            "backbone": {"name": "nano"},
            "dataset": {"name": "glyphs", "train_per_class": 2, "test_per_class": 1},
            "partition": {"name": "dirichlet", "alpha": 1.0},
            "rounds": 1,
            "clients": {"number": 4, "per_round": 2},
        },
        "grid": {"method": ["head_only", "fedncm"]},
        "machine": {"data": str(tmp_path / "data")},
    }
    sweep.write_text(json.dumps(content))  # JSON is YAML
    folder, results = tmp_path / "report", tmp_path / "results"
    command = ["--device-report", str(folder), "--device", "cpu", "--small", "--deadline", "3600"]
    command += ["--sweep", str(sweep), "--results", str(results)]
    assert bench.main(command) == 0

    def read(name):
        return json.loads((folder / f"{name}.json").read_text())

    parts = ["device", "agreement", "contract", "speed_smoke_16", "sweep"]
    assert {name: part["status"] for name, part in read("report")["parts"].items()} == dict.fromkeys(parts, "done")
    assert capsys.readouterr().out.splitlines() == [f"{name}: done" for name in parts]
    assert read("device")["torch"] == torch.__version__
    assert read("device")["multiply_adds_per_second_float32"] > 1e6
    agreement = read("agreement")["methods"]
    assert set(agreement) == set(device_parts.SMALL_ROSTER)
    for precisions in agreement.values():
        assert {name: found["difference"] for name, found in precisions.items()} == dict.fromkeys(device_parts.WAYS, 0)
    assert read("contract")["methods"] == {"fedvpt": {}}
    speed = read("speed_smoke_16")
    assert speed["operators_of_a_step"]["head_only"] < speed["operators_of_a_step"]["fedvpt"]
    assert speed["measured"]["methods"]["fedvpt"]["training"]["fraction"] > 0
    assert read("sweep")["counts"]["done"] == 2
    done = {path: path.stat().st_mtime_ns for path in results.glob("*/done")}
    assert len(done) == 2
    options = ReportOptions(folder, "cpu", small=True, sweep=sweep, results=results)
    assert device_report.run_sweep(options, 600)["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/done")} == done  # nothing was done again


@pytest.mark.parametrize(
    ("code", "status", "why"),
    [
        ("pass", "done", None),
        ("raise RuntimeError('CUDA error: an illegal memory access')", "failed", "an illegal memory access"),
        ("import os; os.abort()", "failed", "-6"),
        ("import time; time.sleep(600)", "timed out", "after 2 s"),
    ],
)
def test_each_part_is_a_process_that_may_fail_crash_or_hang(code, status, why):
    start = time.monotonic()
    outcome = device_report._outcome([sys.executable, "-S", "-c", code], 2)
    assert outcome["status"] == status
    assert why is None or why in outcome["why"]
    assert time.monotonic() - start < 300


def test_a_part_that_fails_costs_no_other_part(tmp_path, monkeypatch):
    """The second part fails; the third is done, and the report names each."""

    def run(part, options, seconds):
        assert seconds < 3600
        return {"status": "failed", "why": "CUDA error"} if part.name == "second" else {"status": "done"}

    monkeypatch.setattr(device_report, "run_part", run)
    first, second, third = (Part(name, (), 0.5) for name in ("first", "second", "third"))
    monkeypatch.setattr(device_report, "stages", lambda small: [[first, second], [third]])
    said = []
    options = ReportOptions(tmp_path / "new" / "report", "cpu", deadline=3600)
    assert device_report.write_report(options, said.append) == 1
    assert said == ["first: done", "second: failed (CUDA error)", "third: done"]
    report = json.loads((options.folder / "report.json").read_text())
    assert {name: part["status"] for name, part in report["parts"].items()} == {
        "first": "done",
        "second": "failed",
        "third": "done",
    }
    assert [goal["measured"] for goal in report["goals"]] == [None] * len(goals.GOALS)


def test_every_goal_is_answered_from_the_reports_with_the_fastest_way(tmp_path, monkeypatch):
    """Worked out by hand: plain training 100 images/s at 0.3 of the rate, 1.5 x compiled, 4 x as a pack, 16 x the loop."""

    def kinds(**rates):
        return {way: {"training": {"images_per_second": rate}} for way, rate in rates.items()}

    plain = {"training": {"images_per_second": 100.0, "fraction": 0.3}}
    plain["evaluation"] = {"images_per_second": 300.0, "fraction": 0.5}
    measured = {
        "methods": {"fedvpt": plain},
        "baselines": kinds(**{"one by one": 6.25, "graphs": 120.0, "pack": 400.0}),
    }
    slower = {"training": {"images_per_second": 80.0, "fraction": 0.2}}  # another process
    compiled = {"methods": {"fedvpt": slower}, "baselines": kinds(compiled=120.0)}
    (tmp_path / "speed_vit_base_224.json").write_text(json.dumps({"measured": measured, "compiled": compiled}))
    (tmp_path / "speed_nano_32.json").write_text(json.dumps({"measured": measured}))
    (tmp_path / "speed_vit_tiny_96.json").write_text("{")  # the process was killed
    monkeypatch.setattr(device_report, "stages", lambda small: [])
    said = []
    assert device_report.write_report(ReportOptions(tmp_path, "cuda"), said.append) == 0
    found = json.loads((tmp_path / "report.json").read_text())["goals"]
    assert [goal["measured"] for goal in found] == [0.45, 0.5, None, 4.0, 24.0, None, 19.2]
    assert "goal: graphs or packs, times without, nano: 4, met (at least 3 wanted)" in said
    assert (
        "goal: evaluation, share of the bfloat16 product rate, ViT-B/16 at 224 px: 0.5, missed (at least 0.6 wanted)"
        in said
    )
    assert len(said) == 5


def test_no_part_is_started_that_has_no_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(device_report, "run_part", lambda *_: pytest.fail("started"))
    said = []
    assert device_report.write_report(ReportOptions(tmp_path, "cpu", deadline=1.0), said.append) == 0
    assert all("skipped" in line for line in said)
    assert len(said) == sum(map(len, device_report.stages(small=False)))


def test_a_part_writes_after_each_item_so_a_killed_one_leaves_what_it_has(tmp_path, monkeypatch):
    def part(device, argument):
        yield {"methods": {"first": 1}, "device": device.type}
        yield {"methods": {"second": argument}}
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(device_parts, "PARTS", {"part": part})
    with pytest.raises(RuntimeError, match="the device is gone"):
        device_parts.main([str(tmp_path / "part.json"), "cpu", "part", "small"])
    written = json.loads((tmp_path / "part.json").read_text())
    assert written.pop("seconds") >= 0
    assert written == {"methods": {"first": 1, "second": True}, "device": "cpu"}


def test_another_result_on_the_device_does_not_agree(monkeypatch):
    """0.02 of 2 is a hundredth: within bfloat16's tolerance, and beyond the others'."""

    def two_rounds(world, name, device, precision, machine=None):
        return {"server.prompt": torch.tensor([1.0, -2.0 if device == "cpu" else -2.02])}, [0.5, 0.25]

    monkeypatch.setattr(device_parts, "_two_rounds", two_rounds)
    _, first, *_ = device_parts.agreement(torch.device("cuda"), small=True)
    found = first["methods"]["fedvpt"]
    assert {name: each["agrees"] for name, each in found.items()} == {
        "float64": False,
        "float32": False,
        "bfloat16": True,
        "float32 with graphs": False,
    }
    assert found["float64"]["difference"] == pytest.approx(0.01)
    assert device_parts.relative_difference(torch.ones(2), torch.ones(3)) == float("inf")


def test_a_method_that_fails_on_the_device_does_not_end_the_part(monkeypatch):
    def two_rounds(world, name, device, precision, machine=None):
        raise RuntimeError(f"no {precision}")

    monkeypatch.setattr(device_parts, "_two_rounds", two_rounds)
    items = list(device_parts.agreement(CPU, small=True))
    assert [next(iter(item["methods"])) for item in items[1:]] == list(device_parts.SMALL_ROSTER)
    assert items[1]["methods"]["fedvpt"]["float64"] == {"agrees": False, "error": "RuntimeError: no float64"}


def test_operators_are_counted_without_views_and_allocations():
    with device_parts.Operators() as operators:
        x = torch.empty(4, 3)
        x.view(3, 4).t()
    assert operators.count == 0
    with device_parts.Operators() as operators:
        x.fill_(1).add(2).sum()
    assert operators.count == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "--device: 'cuda' does not exist: torch finds no GPU"),
        ([], "--device: 'cuda' does not exist: torch finds no GPU"),
        (["--device", "tpu"], "--device: expected auto, cpu, cuda or cuda:N, found 'tpu'"),
        (["--device", "cpu", "--deadline", "0"], "--deadline: expected more than 0 seconds"),
        (["--device", "cpu", "--sweep", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["--device", "cpu", "--sweep", str(HOME / "Makefile")], f"'{HOME / 'Makefile'}': not YAML"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--device-report", str(tmp_path / "report"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "report").exists()


def pass_cost(name, size, method):
    vit = backbone.architecture(name, size)
    task = cost.task_of(vit, 100, torch.ones(10, 100), seed=0)
    return cost.one_pass(method, parameters(method, Aggregation(), task), vit)


def test_the_page_of_gpus_holds_what_the_code_chooses():
    page = (HOME / "docs" / "gpu.md").read_text()
    methods = plugins().classes["method"]
    gpu = torch.device("cuda")
    for name, size, words in (
        ("vit_base_patch16_224", None, "ViT-B/16 at 224 px"),
        ("vit_tiny_patch16_224", 96, "ViT-Ti/16 at 96 px"),
        ("nano", None, "nano"),
    ):
        found = pass_cost(name, size, methods["fedvpt"]())
        cells = [
            f"{found.kept_bytes(p) / 2**20:.1f} | {cost.chunk_images(found, gpu, p)}" for p in ("bfloat16", "float32")
        ]
        assert f"| {words} | {' | '.join(cells)} |" in page
    frozen, trained = (pass_cost("nano", None, methods[name]()) for name in ("fedvpt", "full_finetune"))
    for precision in ("bfloat16", "float32"):
        cells = [
            f"{cost_.kept_bytes(precision) / cost_.kept_tokens / cost_.width:.0f} D" for cost_ in (frozen, trained)
        ]
        assert f"| {precision} | {' | '.join(cells)} |" in page
    for low, high in ((1, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256)):
        sizes = sorted({padded_size(count, 10_000) for count in range(low, high + 1)})
        assert f"| {low} to {high} | {', '.join(map(str, sizes))} |" in page
