"""CIFAR-10 and CIFAR-100 are read correctly from the official layout, flaws are named, and no code in the pickles runs."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import DATASETS, PIXELS, attack, cifar100_files, cifar_archive, publish, unpack
from numpy.typing import NDArray
from test_cache import left

from fedbench.data import DataError


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small official archive in the data folder."""
    path = cifar_archive(tmp_path)
    publish(monkeypatch, "cifar100", tmp_path)
    return path


def upright(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of 1024 red, 1024 green, 1024 blue values, each a 32 x 32 plane, as images."""
    images = np.empty((len(pixels), 32, 32, 3), np.uint8)
    for channel in range(3):
        for row in range(32):
            start = channel * 1024 + row * 32
            images[:, row, :, channel] = pixels[:, start : start + 32]
    return images


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar100_reads_the_official_layout(unpacked: bool, archive: Path, tmp_path: Path) -> None:
    if unpacked:
        unpack(archive, tmp_path)
        archive.unlink()
    fine = DATASETS["cifar100"]().load(tmp_path)
    assert (fine.images == upright(PIXELS[:50])).all()
    assert isinstance(fine.images, np.memmap)
    assert list(fine.labels) == [n * 2 for n in range(50)]
    assert list(fine.is_test) == [False] * 40 + [True] * 10
    assert fine.class_names == tuple(f"fine {c}" for c in range(100))
    coarse = DATASETS["cifar100"](coarse=True).load(tmp_path)
    assert list(coarse.labels) == [n % 20 for n in range(50)]
    assert coarse.class_names == tuple(f"coarse {c}" for c in range(20))
    assert left(tmp_path / "cache") == [path.name for path in (tmp_path / "cache").glob("cifar100-*")], "one for both"
    assert unpacked or not (tmp_path / "cifar-100-python").exists(), "nothing is unpacked"


def test_cifar10_reads_the_official_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_archive(tmp_path, "cifar10")
    publish(monkeypatch, "cifar10", tmp_path)
    made = DATASETS["cifar10"]().load(tmp_path)
    assert (made.images == upright(PIXELS)).all()
    assert list(made.labels) == [n % 10 for n in range(60)]
    assert list(made.is_test) == [False] * 50 + [True] * 10
    assert made.class_names == tuple(f"class {c}" for c in range(10))


TRAIN = cifar100_files()["train"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"test": None}, "expected the official archive with cifar-100-python/train, "),
        ({"train": [1, 2]}, "expected data in train, found [1, 2]"),
        ({"meta": {"other": 1}}, "expected fine_label_names in meta, found other"),
        ({"meta": {"fine_label_names": ["a"], "coarse_label_names": []}}, "expected 100 fine_label_names"),
        ({"train": TRAIN | {"data": PIXELS[:40, :100]}}, "uint8 [N, 3072], found uint8 [40, 100]"),
        ({"train": TRAIN | {"data": "x"}}, "expected data in train as uint8 [N, 3072], found 'x'"),
        ({"train": TRAIN | {"fine_labels": [1]}}, "expected 40 fine_labels in 0..99 in train"),
        ({"test": cifar100_files()["test"] | {"coarse_labels": [20] * 10}}, "10 coarse_labels in 0..19 in test"),
    ],
)
def test_each_flaw_is_named(
    change: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cifar_archive(tmp_path, **change)
    publish(monkeypatch, "cifar100", tmp_path)
    with pytest.raises(DataError) as error:
        DATASETS["cifar100"]().load(tmp_path)
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)
    assert left(tmp_path / "cache") == [], "nothing half-made is left"


def test_another_archive_is_named(archive: Path, tmp_path: Path) -> None:
    size = archive.stat().st_size
    archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(DataError, match=f"with {size:,} bytes, found {size - 50:,}: another file, or a part"):
        DATASETS["cifar100"]().load(tmp_path)
    cifar_archive(tmp_path, write=lambda value: attack(tmp_path / "canary", 0))
    content = archive.read_bytes()
    archive.write_bytes(content[:size] + b"\0" * (size - len(content)))
    with pytest.raises(DataError, match=r"expected cifar-100-python.tar.gz with md5 "):
        DATASETS["cifar100"]().load(tmp_path)
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("kind", ["cut off", "not an archive", "link", "empty"])
def test_a_broken_archive_is_named_where_no_checksum_is_known(
    kind: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "cifar100", tmp_path, size=0, md5="")
    if kind == "cut off":
        archive.write_bytes(archive.read_bytes()[:-5000])
    elif kind == "not an archive":
        archive.write_bytes(b"<html>not found</html>")
    elif kind == "link":  # to a file outside the archive
        with tarfile.open(archive, "w:gz") as made:
            member = tarfile.TarInfo("cifar-100-python/train")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            made.addfile(member)
    else:
        archive.write_bytes(b"")
    with pytest.raises(DataError) as error:
        DATASETS["cifar100"]().load(tmp_path)
    assert str(error.value).startswith(f"{archive}: ")
    assert ("a link" if kind == "link" else "expected") in str(error.value)


@pytest.mark.parametrize("part", ["train", "test", "meta"])
def test_cifar100_runs_nothing(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_archive(tmp_path, **{part: attack(tmp_path / "canary")})
    publish(monkeypatch, "cifar100", tmp_path)
    with pytest.raises(DataError, match=f"/{part}: expected a pickle of plain data.*system, which is not admitted"):
        DATASETS["cifar100"]().load(tmp_path)
    assert not (tmp_path / "canary").exists()
