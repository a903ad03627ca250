"""All mistakes are reported before anything starts: planning checks plug-ins, splits and the device against the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import save_file

from fedbench.base.records import RunFolder
from fedbench.cli import sweep
from fedbench.plan import planning
from fedbench.plan.config import ConfigError
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.plan.task_checks import Where
from fedbench.run.experiment import build
from fedbench.sources import archive
from fedbench.vit import backbone

BASE: dict[str, Any] = {
    "dataset": {"name": "glyphs", "train_per_class": 1, "test_per_class": 1},
    "partition": "iid",
    "method": "fedvpt",
    "clients": {"number": 20, "per_round": 5},
}


def mistakes(base: dict[str, Any] | None = None, where: Where = "here", **content: Any) -> list[str]:
    """The mistakes of a sweep, one a line; none if it is legal."""
    try:
        check_sweep({"base": {**BASE, **(base or {})}, **content}, plugins(), where=where)
    except ConfigError as error:
        return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
    return []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "pfpt", "prompt_length": 30}, "method pfpt: prompt_length 30 is more than pool_size 20"),
        (
            {"name": "sgpt", "shared_blocks": 5, "group_blocks": 4},
            "method sgpt: 5 shared and 4 group blocks, but the backbone has 6 blocks",
        ),
        ({"name": "pep_fedpt", "inject": 6}, "method pep_fedpt: inject is 6, but the backbone has the blocks 0..5"),
        (
            {"name": "fedncm", "finetune_epochs": 3},
            "method fedncm: finetune_epochs is 3, but this method trains nothing",
        ),
        (
            {"name": "pfedpt", "border": 16},
            "method pfedpt: border is 16, but an image of 32 pixels has room for 15",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_method_that_does_not_fit_the_task_says_so(method: dict[str, Any], message: str) -> None:
    assert mistakes({"method": method}) == [message]


def test_an_aggregation_with_local_values_does_not_go_with_a_method_without_clients() -> None:
    (line,) = mistakes({"method": "central_vpt", "aggregation": "scaffold"})
    assert line.startswith("method central_vpt: a method without clients cannot have local values: c_k.")


@pytest.mark.parametrize("when", ["eval", "train", "both"])
def test_a_method_without_clients_has_no_client_prior(when: str) -> None:
    (line,) = mistakes({"method": {"name": "central_vpt", "logit_prior": when}})
    assert line == (
        "method central_vpt: a method without clients cannot have local values: prior (logit_prior must be none)"
    )


@pytest.mark.parametrize("aggregation", sorted(plugins().classes["aggregation"]))
def test_every_aggregation_fits_every_method_and_a_private_one_those_without_a_merge_of_their_own(
    aggregation: str,
) -> None:
    classes = plugins().classes
    methods = sorted(name for name, cls in classes["method"].items() if name != "central_vpt" and not cls.reads_text)
    refused = [name for name in methods if classes["method"][name]().merge is not None]
    if not classes["aggregation"][aggregation].private:
        refused = []
    found = mistakes({"aggregation": aggregation}, grid={"method": methods})
    assert [line.partition(":")[0] for line in found] == [f"method {name}" for name in refused]


@pytest.mark.parametrize("method", sorted(plugins().classes["method"]))
def test_every_method_fits_the_embedded_default_or_is_told_which_backbone_it_needs(method: str) -> None:
    needs = f"method {method}: it needs a backbone with a text tower: clip_nano, two_towers with `weights:`, or an open_clip "
    reads_text = plugins().classes["method"][method].reads_text
    assert [line[: len(needs)] for line in mistakes({"method": method})] == [needs] * reads_text


def test_a_template_needs_a_text_tower_and_one_place_for_the_name() -> None:
    assert mistakes({"backbone": {"name": "nano", "template": "a {}"}}) == [
        "backbone.template: nano has no text tower; leave it out, or use clip_nano or another vision-language model"
    ]
    (line,) = mistakes({"backbone": {"name": "nano", "template": "a glyph"}})
    assert line.startswith("backbone.template: expected a text with one {} in place of the class name")


def test_every_method_fits_a_vision_language_model(tmp_path: Path) -> None:
    backbone = tiny.write_two_towers(tmp_path / "two_towers.safetensors")
    methods = sorted(plugins().classes["method"])
    assert mistakes({"backbone": backbone}, grid={"method": methods}) == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cudaa", "machine.device: expected auto, cpu, cuda or cuda:N, found 'cudaa'"),
        ("mps", "machine.device: expected auto, cpu, cuda or cuda:N, found 'mps'"),
        ("meta", "machine.device: expected auto, cpu, cuda or cuda:N, found 'meta'"),
        ("cuda:7", "machine.device: 'cuda:7' does not exist: torch finds "),
    ],
)
def test_a_device_that_is_not_there_is_a_mistake(device: str, message: str) -> None:
    (line,) = mistakes(machine={"device": device})
    assert line.startswith(message)


def test_a_device_of_another_machine_is_not_looked_for() -> None:
    assert mistakes(machine={"device": "cuda:7"}, where="elsewhere") == []


def test_a_gpu_beyond_the_last_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert mistakes(machine={"device": "cuda:1"}) == []
    assert mistakes(machine={"device": "cuda:7"}) == [
        "machine.device: 'cuda:7' does not exist: torch finds 2 GPUs: cuda:0..1"
    ]


@pytest.mark.parametrize("held_out", [2.5, 1.01, 10.9])
def test_a_part_of_a_client_cannot_be_held_out(held_out: float) -> None:
    assert mistakes({"clients": {"number": 20, "per_round": 5, "held_out": held_out}}) == [
        f"clients.held_out: expected a share below 1 or a whole number of clients, found {held_out}"
    ]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {"partition": {"name": "pathological", "classes_per_client": 200}},
            "partition pathological: impossible split: classes_per_client is 200, but the dataset has 100 classes",
        ),
        ({"partition": "natural"}, "partition natural: impossible split: the dataset has no users"),
        (
            {"clients": {"number": 5, "per_round": 5}, "partition": "domain"},
            "partition domain: impossible split: 5 clients leave some of the 6 domains empty",
        ),
        ({"clients": {"number": 5000, "per_round": 5}}, "partition iid: impossible split: "),
    ],
    ids=["classes", "users", "domains", "clients"],
)
def test_an_impossible_split_is_a_mistake_and_nothing_is_drawn(
    base: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (line,) = mistakes(base, machine={"data": str(tmp_path / "data")})
    assert line.startswith(message)
    assert not (tmp_path / "data").exists()


def test_all_mistakes_are_reported_together() -> None:
    """The optimizer, the precision, the weights, the device, a split and three methods, in one message."""
    lines = mistakes(
        {
            "local": {"optimizer": "lars"},
            "precision": "float16",
            "backbone": {"weights": "/nowhere.safetensors"},
            "partition": {"name": "pathological", "classes_per_client": 200},
        },
        grid={
            "method": [{"name": "pfpt", "prompt_length": 30}, {"name": "pep_fedpt", "inject": 6}, "fedvpt"],
            "seed": [0, 1],
        },
        machine={"device": "cuda:99"},
        tune={"trials": 0},
    )
    beginnings = [
        "backbone.weights: /nowhere.safetensors: No such file",
        "local.optimizer: Input should be 'sgd'",
        "run.precision: Input should be 'float32'",
        "machine.device: 'cuda:99' does not exist",
        "partition pathological: impossible split",
        "method pfpt: prompt_length 30",
        "method pep_fedpt: inject is 6",
        "tune.trials: Input should be greater than or equal to 1",
    ]
    assert len(lines) == len(beginnings)
    assert all(any(line.startswith(start) for line in lines) for start in beginnings)


def test_the_dry_run_and_the_run_itself_report_them_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": {**BASE, "method": {"name": "pfpt", "prompt_length": 30}}}))
    for more in (["--dry-run"], ["--cluster", "inline"]):
        assert sweep.main([str(file), "--results", str(tmp_path / "results"), *more]) == 2
        assert "prompt_length 30 is more than pool_size 20" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


METHOD = '''
"""A method with blocks of the user's own choice."""

from dataclasses import dataclass

from fedbench import method
from fedbench.method import option


@dataclass(frozen=True)
class Method(method.Method):
    """Names blocks."""

    block: int = option(0, "the block")
    hook: str = option("layers", "which hook names it")

    def layers(self, depth):
        return (self.block,) if self.hook == "layers" else ()

    def taps(self, depth):
        return (self.block,) if self.hook == "taps" else ()

    def check(self, task, run):
        if self.hook == "wide" and run["local"]["lr"] > 0.5 and task.num_classes == 100:
            raise ValueError(f"width {task.width} and {task.num_clients} clients do not go with that rate")
        if self.hook == "broken":
            return task.no_such_size
'''


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": 5}, None),
        ({"block": 6}, "layers() names block 6, but the backbone has the blocks 0..5"),
        ({"block": -1}, "layers() names block -1, but the backbone has the blocks 0..5"),
        ({"block": 7, "hook": "taps"}, "taps() names block 7, but the backbone has the blocks 0..5"),
        ({"hook": "wide"}, "width 128 and 20 clients do not go with that rate"),
        ({"hook": "broken"}, "AttributeError: 'PlannedTask' object has no attribute 'no_such_size'"),
    ],
)
def test_a_method_of_the_user_is_checked_too(fields: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "blocks.py").write_text(METHOD)
    base = {**BASE, "method": {"name": "blocks", **fields}, "local": {"lr": 0.6}}
    plugins_ = plugins([tmp_path])
    if message is None:
        assert check_sweep({"base": base}, plugins_, where="here").runs
        return
    with pytest.raises(ConfigError) as error:
        check_sweep({"base": base}, plugins_, where="here")
    assert str(error.value).splitlines()[1:] == [f"  - method blocks: {message}"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "sgpt", "shared_blocks": 5, "group_blocks": 4},
            r"layers\(\) names block 6, but the backbone has the blocks 0\.\.5",
        ),
        (
            {"name": "central_vpt", "logit_prior": "train"},
            r"a method without clients cannot have local values: prior",
        ),
    ],
)
def test_a_job_refuses_what_does_not_fit_too(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A run that was planned without the checks, such as one of a script."""
    images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", images=images, labels=labels, is_test=np.arange(40) % 10 < 4)
    base = {
        **BASE,
        "dataset": {"name": "npz", "path": str(tmp_path / "x.npz")},
        "method": method,
        "clients": {"number": 4, "per_round": 2},
    }
    machine = {"data": str(tmp_path / "data"), "device": "cpu"}
    made = check_sweep({"base": base, "machine": machine}, plugins())
    with pytest.raises(ValueError, match=message):
        build(made.runs[0], made.machine, made.plugins)


def test_an_aggregation_a_dataset_and_a_partitioner_may_check_themselves(tmp_path: Path) -> None:
    kinds = {
        "methods/aggregation": ("method", "Aggregation", "aggregation"),
        "datasets": ("data", "Dataset", "dataset"),
        "datasets/partitioners": ("data", "SplitSource", "partition"),
    }
    for folder, (module, base, kind) in kinds.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        name = "Partitioner" if base == "SplitSource" else base
        (tmp_path / folder / "picky.py").write_text(
            f'"""Refuses every task."""\n\nfrom dataclasses import dataclass\n\n'
            f"from fedbench.{module} import {base} as Base\n\n\n"
            f"@dataclass(frozen=True)\nclass {name}(Base):\n"
            f'    """Refuses."""\n\n    def check(self, task, run):\n'
            f"        raise ValueError(f\"{kind} with {{run['rounds']}} rounds and {{task.depth}} blocks\")\n"
        )
    base_block = {**BASE, "aggregation": "picky", "dataset": "picky", "partition": "picky"}
    with pytest.raises(ConfigError) as error:
        check_sweep({"base": base_block}, plugins([tmp_path]), where="here")
    for kind in ("aggregation", "dataset", "partition"):
        assert f"{kind} picky: {kind} with 100 rounds and 6 blocks" in str(error.value)


def test_nothing_is_fetched_decoded_or_loaded_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(archive, "open_archive", refuse, raising=False)
    monkeypatch.setattr(backbone.nano, "build", refuse)
    monkeypatch.setattr(backbone, "make", refuse)
    monkeypatch.setattr(plugins().classes["dataset"]["glyphs"], "draw", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    data = {"data": str(tmp_path / "data")}
    assert mistakes({"dataset": "cifar100", "backbone": {"name": "vit_tiny_patch16_224"}}, machine=data) == []
    assert mistakes({"dataset": "glyphs"}, machine=data) == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "vit_tinny_patch16_224"}, "backbone: no timm model is called 'vit_tinny_patch16_224'"),
        ({"name": "resnet18"}, "backbone: 'resnet18' is not a supported ViT"),
        ({"name": "vit_tiny_patch16_224", "image_size": 100}, "backbone: "),
        ({"name": "nano", "image_size": 64}, "backbone: nano comes with its weights"),
        ({"name": "clip_nano", "pool": "avg"}, "backbone: clip_nano is read at its CLS token"),
        ({"name": "nano", "pool": "max"}, "backbone.pool: "),
    ],
)
def test_a_backbone_that_cannot_serve_is_a_mistake(block: dict[str, Any], message: str) -> None:
    (line,) = mistakes({"backbone": block})
    assert line.startswith(message)


def test_weights_of_another_architecture_are_a_mistake(tmp_path: Path) -> None:
    save_file({"cls_token": torch.zeros(1, 1, 8), "norm.weight": torch.zeros(8)}, tmp_path / "w.safetensors")
    block = {"name": "vit_tiny_patch16_224", "weights": str(tmp_path / "w.safetensors")}
    (line,) = mistakes({"backbone": block})
    assert line.startswith("backbone: ")
    assert "w.safetensors does not fit this architecture" in line


def test_a_file_of_the_user_that_cannot_be_read_as_images_is_a_mistake(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), np.float32), labels=np.arange(4) % 2)
    (line,) = mistakes({"dataset": {"name": "npz", "path": str(tmp_path / "x.npz")}})
    assert line.startswith("dataset npz: ")


def test_status_names_the_mistakes_of_runs_that_have_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    base = {**BASE, "rounds": 1, "method": {"name": "pfpt", "prompt_length": 30}}
    file.write_text(yaml.safe_dump({"base": base, "machine": {"device": "cuda:7"}}))
    arguments = [str(file), "--results", str(tmp_path / "results"), "--status"]
    for form in ([], ["--json"]):
        assert sweep.main([*arguments, *form]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.splitlines() == [
            f"error: {file}: 1 mistake",
            "  - method pfpt: prompt_length 30 is more than pool_size 20",
        ]


def test_status_does_not_check_runs_again_that_have_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": {**BASE, "rounds": 1}, "machine": {"data": str(tmp_path)}}))
    for planned in sweep.read_sweep(file).runs:
        RunFolder(tmp_path / "results" / planned.name).plan({"identity": planned.identity})
    monkeypatch.setattr(planning, "check_tasks", lambda *_: pytest.fail("checked again"))
    assert sweep.main([str(file), "--results", str(tmp_path / "results"), "--status"]) == 0
