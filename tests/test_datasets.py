"""Every dataset keeps the contract; those with official archives are tested on small archives of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from archives import ARCHIVES, DATASETS, official
from test_imagefolder import image_tree
from test_npz import save as save_npz

from fedbench.contract import form
from fedbench.contract.samples import CHECKS, OnDisk
from fedbench.data import DataError, Extent, split
from fedbench.plan.plugins import plugins
from fedbench.sources import archive_files, cache, pixels

PARTITIONERS: dict[str, Any] = plugins().classes["partition"]
OPTIONS: dict[str, dict[str, Any]] = {"glyphs": {"train_per_class": 2, "test_per_class": 1}, "imagefolder": {}}


def prepared(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dataset `name`, with small files in `folder` where it reads files."""
    options = dict(OPTIONS.get(name, {}))
    if name == "npz":
        options["path"] = save_npz(folder / "mine.npz")
    if name == "imagefolder":
        options |= {"path": image_tree(folder / "mine", each=10), "image_size": 8}
    if name in ARCHIVES:
        official(name, folder / "root", monkeypatch)
        options |= {"image_size": 16} if name not in ("cifar10", "cifar100") else {}
    return DATASETS[name](**options)


def test_datasets_were_found() -> None:
    assert {"npz", "imagefolder", "cifar100"} <= set(DATASETS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(name, tmp_path, monkeypatch)
    if dataset.archives:
        assert dataset.licence
        assert dataset.facts
        assert dataset.facts.page
    case = OnDisk(dataset, tmp_path / "root")
    for check in [*form.CHECKS, *(check for check in CHECKS if check.subject_kind == "dataset")]:
        check.run(dataset if check.subject_kind == "plugin" else case)
    hashes = {split(samples, PARTITIONERS["iid"](), 3).hash for samples in (case.samples, dataset.load(case.root))}
    assert len(hashes) == 1


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_an_extent_costs_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a data set is prepared it is known or refused, and nothing is fetched, decoded or written."""
    dataset = prepared(name, tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    for module, function in ((pixels, "write"), (archive_files, "download"), (cache, "_make")):
        monkeypatch.setattr(module, function, lambda *_: pytest.fail("an extent was to cost nothing"))
    if name in ARCHIVES:
        with pytest.raises(DataError, match=f"{name} is not prepared below .* run fedbench data prepare {name}"):
            dataset.extent(tmp_path / "root")
    else:
        extent = dataset.extent(tmp_path / "root")
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    if name not in ARCHIVES:
        assert extent == Extent.of(dataset.load(tmp_path / "root"))
