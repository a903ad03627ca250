"""Data never run as code: sweep files, settings, weights, checkpoints and records that try to run code are refused.

Pickles of data sets, archives, npz files, caches and the page have tests of their own beside what reads them.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from workplace import Workplace

from fedbench.base.lease import owner_of
from fedbench.base.processes import process
from fedbench.base.record_schema import TotalCosts
from fedbench.base.records import RecordsError, RunFolder
from fedbench.cli import check, data
from fedbench.jobs import launch, slurm
from fedbench.plan.config import Cluster, ConfigError
from fedbench.plan.planning import read_sweep
from fedbench.plan.plugins import HOME
from fedbench.report.evidence import gather
from fedbench.report.paper_numbers import COLUMNS, ReferencesError, read
from fedbench.report.selection import ReportError
from fedbench.run import checkpoint
from fedbench.vit import backbone
from fedbench.vit import features as features_module
from fedbench.vit.features import features
from fedbench.vit.images import Images


class Payload:
    """Unpickled by a loader that trusts it, makes the file `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def tag(canary: Path) -> str:
    """The same in YAML, on one line."""
    return f"!!python/object/apply:os.mkdir ['{canary}']"


@pytest.fixture
def canary(tmp_path):
    """What must not be there after the test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "something ran"


def test_the_attacks_would_work(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "a")))
    yaml.load(tag(tmp_path / "b"), Loader=yaml.UnsafeLoader)
    torch.save({"weight": Payload(tmp_path / "c")}, tmp_path / "c.pt")
    torch.load(tmp_path / "c.pt", weights_only=False)
    assert all((tmp_path / name).is_dir() for name in "abc")


@pytest.mark.parametrize("text", ["{tag}", "name: {tag}", "base: {{rounds: {tag}}}", "grid: {{method: [{tag}]}}"])
def test_a_sweep_file_runs_nothing(text, canary, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text.format(tag=tag(canary)))
    with pytest.raises(ConfigError, match="not YAML"):
        read_sweep(tmp_path / "sweep.yaml")


def test_a_setting_runs_nothing(canary, tmp_path, capsys):
    with pytest.raises(ConfigError, match="not a YAML value"):
        read_sweep(HOME / "sweeps" / "quickstart.yaml", settings=[f"rounds={tag(canary)}"])
    assert data.main(["info", "glyphs", "--set", f"train_per_class={tag(canary)}"]) == data.MISTAKE
    assert check.main([str(HOME / "methods" / "fedvpt.py"), "--set", f"prompt={tag(canary)}"]) == check.MISTAKE
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_run_yaml_runs_nothing(canary, tmp_path):
    run = RunFolder(tmp_path / "results" / "run")
    run.path.mkdir(parents=True)
    (run.path / "run.yaml").write_text(f"identity: {tag(canary)}\n")
    with pytest.raises(RecordsError, match=r"run\.yaml: cannot be read"):
        run.config()
    with pytest.raises(ReportError, match=r"run\.yaml cannot be read"):
        gather([], tmp_path / "results")


def test_plug_in_folders_that_a_run_names_are_not_looked_into_by_a_report(canary, tmp_path):
    """A job executes what its run.yaml names; a reader of somebody's results must not."""
    place = Workplace(tmp_path)
    (run,) = place.plan()[:1]
    (tmp_path / "theirs" / "methods").mkdir(parents=True)
    (tmp_path / "theirs" / "methods" / "bad.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    (run.path / "run.yaml").write_text(yaml.safe_dump(run.config() | {"plugins": [str(tmp_path / "theirs")]}))
    assert len(gather([], place.results).runs) == 2


def test_published_numbers_run_nothing(canary, tmp_path):
    row = f'A,t,T,S,mean_accuracy,1.0,"{tag(canary)}",{{name: glyphs}},{{name: iid}}'
    (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\n" + row + "\n")
    with pytest.raises(ReferencesError):
        read(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_weights_run_nothing(form, suffix, canary, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if form == "torch":
        torch.save({"weight": Payload(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises(backbone.BackboneError, match="not a readable"):
        backbone.make("vit_tiny_patch16_224", path)
    with pytest.raises(backbone.BackboneError, match="not a readable"):
        backbone.architecture("vit_tiny_patch16_224", weights=path)


def test_a_pickled_checkpoint_is_not_read(canary, tmp_path):
    torch.save({"prompt": Payload(canary)}, tmp_path / checkpoint.CURRENT)
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, {"prompt": torch.ones(2)}, 3, TotalCosts(0, 0, 0), 0.0)
    os.replace(tmp_path / checkpoint.CURRENT, tmp_path / checkpoint.PREVIOUS)
    (tmp_path / checkpoint.CURRENT).write_bytes(pickle.dumps(Payload(canary)))
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert saved.round == 3  # the one before it


def test_a_name_in_a_checkpoint_is_no_path(tmp_path):
    checkpoint.save(tmp_path, {"../../outside": torch.ones(2)}, 1, TotalCosts(0, 0, 0), 0.0)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert list(saved.state) == ["../../outside"]  # a name like any other
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.CURRENT]


def test_cached_features_that_are_objects_are_made_again(canary, tmp_path):
    vit = backbone.make("nano")
    images = Images(
        np.zeros((2, 32, 32, 3), np.uint8), vit.image_size, vit.mean, vit.std, torch.device("cpu"), torch.float32
    )
    expected = features(vit, images, "x", tmp_path)
    with (tmp_path / "features" / "x" / "features.npy").open("wb") as file:
        np.save(file, np.array([Payload(canary)], object), allow_pickle=True)
    assert (features(vit, images, "x", tmp_path) == expected).all()


@pytest.mark.parametrize("how", ["no folder", "no space"])
def test_features_that_cannot_be_kept_are_computed_once_with_a_word(how, tmp_path, caplog, monkeypatch):
    vit = backbone.make("nano")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    images = Images(pixels, vit.image_size, vit.mean, vit.std, torch.device("cpu"), torch.float32)
    expected = features(vit, images, "x", tmp_path / "good")
    made, compute = [], features_module._compute
    monkeypatch.setattr(features_module, "_compute", lambda *args: made.append(compute(*args)) or made[-1])
    if how == "no folder":
        (tmp_path / "bad").write_text("a file")
    else:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(full))
    assert torch.equal(features(vit, images, "x", tmp_path / "bad"), expected)
    assert len(made) == 1
    assert "features are not cached: " in caplog.text


def test_flipped_bytes_in_cached_features_are_computed_again_with_a_word(tmp_path, caplog):
    vit = backbone.make("nano")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    images = Images(pixels, vit.image_size, vit.mean, vit.std, torch.device("cpu"), torch.float32)
    expected = features(vit, images, "x", tmp_path)
    file = tmp_path / "features" / "x" / "features.npy"
    content = bytearray(file.read_bytes())
    for place in (-2, -90, -180, -300):
        content[place] ^= 64
    file.write_bytes(content)
    assert (features(vit, images, "x", tmp_path) == expected).all()
    assert "features.npy: expected sha256" in caplog.text
    assert "computed again" in caplog.text


@pytest.mark.parametrize("line", ["[1, 2]", "7", '"x"', "{}", '{"round": []}'])
def test_odd_records_are_named(line, tmp_path):
    (tmp_path / "records.jsonl").write_text(line + "\n")
    problems: list[str] = []
    assert RunFolder(tmp_path).records(problems) == []
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'records.jsonl'}, line 1: ")


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"host": "a"}', '{"__class__": "x", "pid": "1; touch y"}'])
def test_odd_claim_files_and_jobs_belong_to_nobody(content, tmp_path):
    (tmp_path / "claim.1").write_text(content)
    (tmp_path / "job.json").write_text(content)
    assert owner_of(tmp_path / "claim.1") is None
    assert isinstance(RunFolder(tmp_path).job(), dict)


@pytest.mark.parametrize("pid", [0, -1, "-1", "1; touch canary", "../1"])
def test_a_remembered_process_that_is_none_is_not_ended(pid, tmp_path):
    """-1 would be every process of the user."""
    assert launch.stop([{**vars(process()), "pid": pid, "started": "1"}], seconds=0.1)


def test_the_name_of_a_sweep_is_no_path_and_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Workplace(tmp_path)
    before = set(tmp_path.parent.iterdir())
    name = "../../up; touch canary $(touch canary) `touch canary`\n#SBATCH --x"
    place.write(name=name, seeds=[0], rounds=1)
    assert place.run("--cluster", "local") == 0
    assert not list(tmp_path.rglob("canary*"))
    assert set(tmp_path.parent.iterdir()) == before
    (folder,) = place.folders
    assert json.loads((folder.path / "job.json").read_text())["sweep"] == name
    assert slurm.job_name(name) == "fedbench-..-..-up-touch-canary-touch-canary-touch-canary-SBATCH---x"


@pytest.mark.parametrize(
    "block",
    [
        {"partition": "gpu\ntouch canary"},
        {"account": "me\n#SBATCH --x"},
        {"slurm": {"comment": "a\ntouch canary"}},
        {"slurm": {"additional_parameters": {"comment": "a\ntouch canary"}}},
        {"slurm": {"additional_parameters": {"x\ntouch canary": 1}}},
    ],
)
def test_an_option_of_sbatch_cannot_begin_a_line_of_its_own(block):
    with pytest.raises(ConfigError, match="a line break in"):
        slurm.slurm_parameters(Cluster(**block))
