"""A user's files in a run's identity: the files that the loader reads count by content, and are read once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import DATASETS
from PIL import Image
from test_imagefolder import image_tree

from fedbench.base import checksums
from fedbench.cli import data as data_command
from fedbench.cli import sweep as sweep_command
from fedbench.plan import content
from fedbench.plan.config import ConfigError
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.report.evidence import gather

BASE: dict[str, Any] = {"method": "head_only", "partition": "iid", "clients": {"number": 2, "per_round": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder that was written a while ago."""
    tree = image_tree(tmp_path / "photos", each=10)
    for path in tree.rglob("*.png"):
        os.utime(path, (time.time() - 100,) * 2)
    return tree


def key(folder: Path, data: Path, **options: Any) -> str:
    dataset = {"name": "imagefolder", "path": str(folder), "image_size": 8, **options}
    (run,) = check_sweep({"base": {**BASE, "dataset": dataset}, "machine": {"data": str(data)}}, plugins()).runs
    return run.key


@pytest.mark.parametrize(
    "name", [".DS_Store", "cat/.DS_Store", "README", "README.md", "cat/notes.txt", ".git/config", "__MACOSX/cat/0.png"]
)
def test_a_file_that_is_not_read_changes_no_run(name: str, folder: Path, tmp_path: Path) -> None:
    before = key(folder, tmp_path)
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(b"stray")
    assert key(folder, tmp_path) == before


def test_an_image_that_is_added_changed_renamed_or_removed_changes_the_run(folder: Path, tmp_path: Path) -> None:
    keys = [key(folder, tmp_path)]
    Image.new("RGB", (9, 9), "white").save(folder / "cat" / "10.png")
    keys.append(key(folder, tmp_path))
    Image.new("RGB", (9, 9), "black").save(folder / "cat" / "10.png")
    keys.append(key(folder, tmp_path))
    (folder / "cat" / "10.png").rename(folder / "cat" / "11.png")
    keys.append(key(folder, tmp_path))
    (folder / "cat" / "0.png").unlink()
    keys.append(key(folder, tmp_path))
    assert len(set(keys)) == 5


def test_the_key_of_a_clean_folder_is_the_hash_of_its_names_and_bytes(folder: Path) -> None:
    """Runs that were planned before files were chosen keep their names."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    dataset = DATASETS["imagefolder"](path=folder)
    assert content.content_hash(folder, dataset.files_read) == digest.hexdigest()[:16]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose checksums are computed from now on, in this process as in a new one."""
    files: list[str] = []
    real = checksums._digest

    def spied(file: Any, name: str, size: int, algorithm: str) -> str:
        files.append(name)
        return real(file, name, size, algorithm)

    monkeypatch.setattr(checksums, "_digest", spied)
    fresh_process(monkeypatch)
    return files


def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_known", {})
    monkeypatch.setattr(content, "_indexes", {})
    content.forget()


def test_a_folder_is_read_once_and_then_only_what_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "large.bin").write_bytes(bytes(1 << 20))
    files = reads(monkeypatch)
    first = key(folder, tmp_path)
    assert len(files) == 20, "the images alone, without the large stray file"
    content.save()
    fresh_process(monkeypatch)
    assert key(folder, tmp_path) == first
    assert len(files) == 20, "a new process finds the hashes below the data folder"
    Image.new("RGB", (9, 9), "white").save(folder / "cat" / "3.png")
    os.utime(folder / "cat" / "3.png", (time.time() - 50,) * 2)
    fresh_process(monkeypatch)
    assert key(folder, tmp_path) != first
    assert files[20:] == ["3.png"]


def test_a_file_changed_a_moment_ago_is_not_trusted_by_its_time(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "0.png").touch()
    key(folder, tmp_path)
    content.save()
    (index,) = (tmp_path / "cache" / "content").iterdir()
    assert len(json.loads(index.read_text())) == 19


@pytest.mark.parametrize("damage", ["", "[]", "null", '{"cat/0.png": 3}', '{"cat/0.png": [1, 2, 3, "x"]}', "\xff"])
def test_a_damaged_index_costs_time_and_no_number(
    damage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(folder, tmp_path)
    content.save()
    (index,) = (tmp_path / "cache" / "content").iterdir()
    index.write_bytes(damage.encode("latin-1"))
    fresh_process(monkeypatch)
    assert key(folder, tmp_path) == before


def test_planning_writes_nothing_and_starting_runs_does(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    dataset = {"name": "imagefolder", "path": str(folder), "image_size": 8}
    base = {**BASE, "dataset": dataset, "rounds": 1}
    file.write_text(json.dumps({"base": base, "machine": {"data": str(tmp_path / "data")}}))
    words = [str(file), "--results", str(tmp_path / "results")]
    for verb in ("--dry-run", "--status"):
        sweep_command.main([*words, verb])
        assert not (tmp_path / "data").exists()
    assert sweep_command.main([*words, "--cluster", "inline"]) == 0
    assert list((tmp_path / "data" / "cache" / "content").iterdir())


def test_prepare_writes_the_index(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--set", f"path={folder}", "--set", "image_size=8"]
    assert data_command.main(["prepare", "imagefolder", "--root", str(tmp_path / "data"), *options]) == 0
    files = reads(monkeypatch)
    key(folder, tmp_path / "data")
    assert files == []


def test_links_in_circles_end(folder: Path, tmp_path: Path) -> None:
    before = key(folder, tmp_path)
    for name in ("cat/up", "cat/round", "dog/up"):
        (folder / name).symlink_to(folder)
    assert key(folder, tmp_path) == before
    assert len(DATASETS["imagefolder"](path=folder, image_size=8).load(tmp_path).labels) == 20


def test_a_linked_class_folder_counts(folder: Path, tmp_path: Path) -> None:
    (folder / "dog").rename(tmp_path / "elsewhere")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    before = key(folder, tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "10.png")
    assert key(folder, tmp_path) != before


def test_file_names_in_latin_1_are_names(folder: Path, tmp_path: Path) -> None:
    before = key(folder, tmp_path)
    raw = os.fsencode(folder)
    os.rename(raw + b"/cat", raw + b"/caf\xe9")  # noqa: PTH104 - bytes that are no text
    os.rename(raw + b"/dog/0.png", raw + b"/dog/gar\xe7on.png")  # noqa: PTH104
    assert key(folder, tmp_path) != before
    made = DATASETS["imagefolder"](path=folder, image_size=8).load(tmp_path)
    assert made.class_names == ("café", "dog")
    assert len(made.labels) == 20


def test_two_encodings_of_one_class_name_are_refused(folder: Path, tmp_path: Path) -> None:
    raw = os.fsencode(folder)
    os.rename(raw + b"/cat", raw + b"/caf\xe9")  # noqa: PTH104
    (folder / "dog").rename(folder / "café")
    with pytest.raises(ConfigError, match=r"two folders are called 'café', in different encodings; rename one"):
        key(folder, tmp_path)


@pytest.mark.parametrize("block", ["dataset", "image", "partition", "backbone"])
def test_a_named_pipe_is_a_mistake_and_not_waited_for(block: str, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    base: dict[str, Any] = {**BASE, "dataset": "digits"}
    if block == "image":
        pipe = folder / "cat" / "pipe.png"
        os.mkfifo(pipe)
        base["dataset"] = {"name": "imagefolder", "path": str(folder)}
    elif block == "backbone":
        base["backbone"] = {"name": "nano", "weights": str(pipe)}
    else:
        base[block] = {"name": "npz" if block == "dataset" else "file", "path": str(pipe)}
    with pytest.raises(ConfigError, match=r"pipe.png.*(found a named pipe|neither a regular file nor a folder)"):
        check_sweep({"base": base}, plugins())


def test_a_folder_that_cannot_be_read_as_images_is_a_mistake_of_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"1 mistake\n  - .*photos: expected images as class/image"):
        key(tmp_path / "photos", tmp_path)


def test_a_dataset_without_the_hook_counts_all_files_but_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "x.npy", np.arange(3))
    before = content.content_hash(tmp_path / "mine")
    (tmp_path / "mine" / ".DS_Store").write_bytes(b"?")
    content.forget()
    assert content.content_hash(tmp_path / "mine") == before
    (tmp_path / "mine" / "README").write_bytes(b"?")
    content.forget()
    assert content.content_hash(tmp_path / "mine") != before


def test_tables_tell_two_folders_apart_by_their_names(folder: Path, tmp_path: Path) -> None:
    """Two runs of one sweep over two image folders, to the table that users read."""
    image_tree(tmp_path / "drawings", each=12)
    datasets = [{"name": "imagefolder", "path": str(path), "image_size": 8} for path in (folder, tmp_path / "drawings")]
    content_ = {
        "base": {**BASE, "rounds": 1},
        "grid": {"dataset": datasets},
        "machine": {"data": str(tmp_path / "data")},
    }
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps(content_))
    results = tmp_path / "results"
    assert sweep_command.main([str(file), "--results", str(results), "--cluster", "inline"]) == 0
    runs = gather([file], results).runs
    assert sorted(runs["setting"]) == [
        "imagefolder drawings · iid",
        "imagefolder photos · iid",
    ]
