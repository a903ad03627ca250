"""Every dataset found keeps the contract, those of official archives on small archives of the same layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import ARCHIVES, DATASETS, official
from test_imagefolder import image_tree
from test_npz import save as save_npz

from fedbench.data import Samples, split
from fedbench.plugins import plugins

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
    assert dataset.__doc__
    assert dataset.citation
    if dataset.archives:
        assert dataset.licence
        assert dataset.facts
        assert dataset.facts.page
    for field in dataclasses.fields(dataset):
        assert field.metadata["meaning"], field.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.anything = 1

    first = dataset.load(tmp_path / "root")
    count = len(first.labels)
    assert first.images.dtype == np.uint8
    assert first.images.shape[0] == count
    assert first.images.shape[3] == 3
    assert first.labels.dtype == np.int64
    assert first.is_test.dtype == np.bool_
    assert 0 < first.is_test.sum() < count
    assert first.labels.min() >= 0
    assert first.labels.max() < first.num_classes
    for column, least in ((first.domain, 0), (first.user, -1)):
        assert column is None or (column.dtype == np.int64 and column.shape == (count,) and column.min() >= least)
    if first.domain is not None and first.domain_names:
        assert first.domain.max() < len(first.domain_names)
    assert len(set(first.class_names)) == len(first.class_names)

    again = dataset.load(tmp_path / "root")
    for column in dataclasses.fields(Samples):
        one, other = getattr(first, column.name), getattr(again, column.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    assert split(first, PARTITIONERS["iid"](), 3).hash == split(again, PARTITIONERS["iid"](), 3).hash
