"""Every dataset found keeps the contract; a user's files and downloads are checked, never trusted, and cached once."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import io
import multiprocessing
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fedbench import cache, safe_pickle
from fedbench.cache import cached_arrays
from fedbench.data import DataError, Samples, split
from fedbench.plugins import plugins

DATASETS: dict[str, Any] = plugins().classes["dataset"]
PARTITIONERS: dict[str, Any] = plugins().classes["partition"]
OPTIONS: dict[str, dict[str, Any]] = {"glyphs": {"train_per_class": 2, "test_per_class": 1}, "imagefolder": {}}


# ---------------------------------------------------------------- the contract


def prepared(name: str, folder: Path) -> Any:
    """The dataset `name`, with small files in `folder` where it reads files."""
    options = dict(OPTIONS.get(name, {}))
    if name == "npz":
        options["path"] = save(folder / "mine.npz")
    if name == "imagefolder":
        options |= {"path": image_tree(folder / "mine", each=10), "image_size": 8}
    if name == "cifar100":
        cifar_archive(folder / "root")
    return DATASETS[name](**options)


def test_datasets_were_found() -> None:
    assert {"npz", "imagefolder", "cifar100"} <= set(DATASETS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_keeps_the_contract(name: str, tmp_path: Path) -> None:
    dataset = prepared(name, tmp_path)
    assert dataset.__doc__
    assert dataset.citation
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
    for column in (first.domain, first.user):
        assert column is None or (column.dtype == np.int64 and column.shape == (count,) and column.min() >= 0)
    if first.domain is not None and first.domain_names:
        assert first.domain.max() < len(first.domain_names)
    assert len(set(first.class_names)) == len(first.class_names)

    again = dataset.load(tmp_path / "root")
    for column in dataclasses.fields(Samples):
        one, other = getattr(first, column.name), getattr(again, column.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    assert split(first, PARTITIONERS["iid"](), 3).hash == split(again, PARTITIONERS["iid"](), 3).hash


def left(folder: Path) -> list[str]:
    """What is in a folder, but for locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ---------------------------------------------------------------- npz


def arrays(**change: Any) -> dict[str, Any]:
    """Twelve images of three classes; a change to None leaves the array out."""
    given = {
        "images": np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3)).astype(np.uint8),
        "labels": np.arange(12) % 3,
        "is_test": np.arange(12) >= 8,
    }
    return {name: value for name, value in {**given, **change}.items() if value is not None}


def save(path: Path, **change: Any) -> Path:
    np.savez(path, **arrays(**change))
    return path


def test_npz_gives_back_what_was_saved(tmp_path: Path) -> None:
    extra = {
        "domain": np.arange(12, dtype=np.uint8) % 2,
        "user": np.arange(12, dtype=np.int32) * 7,
        "class_names": np.array(["a", "b", "c", "unseen"]),
    }
    np.savez_compressed(tmp_path / "mine.npz", **arrays(labels=(np.arange(12) % 3).astype(np.uint16), **extra))
    made = DATASETS["npz"](path=tmp_path / "mine.npz").load(tmp_path)
    assert (made.images == arrays()["images"]).all()
    assert (made.labels == np.arange(12) % 3).all()
    assert (made.is_test == arrays()["is_test"]).all()
    assert made.domain is not None
    assert (made.domain == extra["domain"]).all()
    assert made.user is not None
    assert (made.user == extra["user"]).all()
    assert made.class_names == ("a", "b", "c", "unseen")
    assert {made.labels.dtype, made.domain.dtype, made.user.dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        ({"labels": None}, "the arrays images, labels, is_test", "found images, is_test"),
        ({"label": np.zeros(12)}, "at most domain, user, class_names", "is_test, label"),
        ({"images": np.zeros((12, 4, 5, 3))}, "images as uint8 [N, H, W, 3]", "float64 [12, 4, 5, 3]"),
        ({"images": np.zeros((12, 3, 4, 5), np.uint8)}, "images as uint8 [N, H, W, 3]", "uint8 [12, 3, 4, 5]"),
        ({"images": np.zeros((12, 4, 5), np.uint8)}, "images as uint8 [N, H, W, 3]", "uint8 [12, 4, 5]"),
        ({"images": np.zeros((0, 4, 5, 3), np.uint8)}, "images as uint8 [N, H, W, 3]", "uint8 [0, 4, 5, 3]"),
        ({"images": np.zeros((12, 0, 5, 3), np.uint8)}, "images as uint8 [N, H, W, 3]", "uint8 [12, 0, 5, 3]"),
        ({"labels": np.zeros(11, int)}, "labels as integers [12]", "int64 [11]"),
        ({"labels": np.zeros((12, 1), int)}, "labels as integers [12]", "int64 [12, 1]"),
        ({"labels": np.zeros(12)}, "labels as integers [12]", "float64 [12]"),
        ({"labels": np.arange(12) % 3 - 1}, "labels from 0 on", "-1..1"),
        ({"labels": np.full(12, 2**63, np.uint64)}, "labels from 0 on", str(2**63)),
        ({"labels": np.arange(12) % 3 + 1}, "labels in 0..C-1", "up to 3, but none with 0"),
        ({"labels": np.arange(12) % 3 * 2}, "labels in 0..C-1", "up to 4, but none with 1"),
        ({"class_names": np.array(["a", "b"])}, "labels in 0..1, since there are 2 class_names", "found 2"),
        ({"class_names": np.arange(3)}, "class_names as text [C]", "int64 [3]"),
        ({"class_names": np.array(["a", "b", "a"])}, "class_names as text [C] without repetition", "[3]"),
        ({"is_test": np.arange(12) // 8}, "is_test as bool [12]", "int64 [12]"),
        ({"is_test": np.ones(3, bool)}, "is_test as bool [12]", "bool [3]"),
        ({"is_test": np.zeros(12, bool)}, "is_test with training and test samples", "0 of 12"),
        ({"is_test": np.ones(12, bool)}, "is_test with training and test samples", "12 of 12"),
        ({"domain": np.zeros(4, int)}, "domain as integers [12]", "int64 [4]"),
        ({"domain": np.array(["x"] * 12)}, "domain as integers [12]", "<U1 [12]"),
        ({"user": np.full(12, -1)}, "user from 0 on", "-1..-1"),
        ({"labels": np.array([1, "x", None] * 4, object)}, "arrays without objects", "Object arrays"),
    ],
)
def test_npz_names_each_flaw(change: dict[str, Any], expected: str, found: str, tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", **change)
    with pytest.raises(DataError) as told:
        DATASETS["npz"](path=path).load(tmp_path)
    message = str(told.value)
    assert message.startswith(f"{path}: expected ")
    assert expected in message
    assert found in message


def whole_npz(compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays())
    return file.getvalue()


def damaged_zips(whole: bytes) -> dict[str, bytes]:
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF  # inside a member: its checksum fails
    plain, npy = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("notes.txt", "no array")
    np.save(npy, np.zeros(3))
    encrypted = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):  # set the flag that says so in every header
        at, offset = 0, 6 if mark == b"PK\x03\x04" else 8
        while (at := encrypted.find(mark, at)) >= 0:
            encrypted[at + offset] |= 1
            at += 4
    return {
        "empty": b"",
        "text": b"a,b,c\n",
        "pickle": pickle.dumps({"images": 1}),
        "npy": npy.getvalue(),
        "no arrays": plain.getvalue(),
        "cut off": whole[: len(whole) // 2],
        "cut at the end": whole[:-10],
        "changed": bytes(changed),
        "encrypted": bytes(encrypted),
        "cut at the start": whole[40:],
    }


@pytest.mark.parametrize("kind", sorted(damaged_zips(whole_npz())))
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_that_is_none(kind: str, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(damaged_zips(whole_npz(compressed))[kind])
    with pytest.raises(DataError) as told:
        DATASETS["npz"](path=path).load(tmp_path)
    assert str(path) in str(told.value)
    assert "expected" in str(told.value)
    assert "found" in str(told.value)


def test_npz_with_a_truncated_member(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays().items():
            member = io.BytesIO()
            np.save(member, values)
            archive.writestr(f"{name}.npy", member.getvalue()[:-7])
    with pytest.raises(DataError, match="intact"):
        DATASETS["npz"](path=path).load(tmp_path)


def test_npz_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            DATASETS["npz"](path=path).load(tmp_path)
    with pytest.raises(ValidationError):
        TypeAdapter(DATASETS["npz"]).validate_python({})


def test_npz_runs_no_pickle(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays(images=None).items():
            member = io.BytesIO()
            np.save(member, values)
            archive.writestr(f"{name}.npy", member.getvalue())
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (12,), }"
        header = header.ljust(117) + b"\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header + attack(canary))
    with pytest.raises(DataError):
        DATASETS["npz"](path=path).load(tmp_path)
    assert not canary.exists()


# ---------------------------------------------------------------- imagefolder


def image_tree(folder: Path, domains: tuple[str, ...] = (), tops: tuple[str, ...] = ("",), each: int = 5) -> Path:
    """Two classes of small images whose grey level tells which they are."""
    level = 0
    for top in tops:
        for domain in domains or ("",):
            for name in ("cat", "dog"):
                for number in range(each):
                    place = folder / top / domain / name
                    place.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (12, 9), (level, level, level)).save(place / f"{number}.png")
                    level += 3
    return folder


def test_imagefolder_of_classes(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", each=10)
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "cat" / ".hidden.png").write_text("nor this")
    (folder / ".git").mkdir()
    (folder / "empty").mkdir()
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path / "root")
    assert made.images.shape == (20, 6, 6, 3)
    assert (made.images[:, 0, 0, 0] == np.arange(20) * 3).all()
    assert list(made.labels) == [0] * 10 + [1] * 10
    assert made.class_names == ("cat", "dog")
    assert made.domain is None
    assert [made.is_test[made.labels == c].sum() for c in (0, 1)] == [2, 2], "a fifth of each class"
    assert isinstance(made.images, np.memmap)
    assert not made.images.flags.writeable


def test_imagefolder_of_domains(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", ("art", "photo"))
    made = DATASETS["imagefolder"](path=folder, image_size=6, test_share=0.4).load(tmp_path / "root")
    assert made.domain_names == ("art", "photo")
    assert made.domain is not None
    assert list(made.domain) == [0] * 10 + [1] * 10
    for domain in (0, 1):
        for label in (0, 1):
            assert made.is_test[(made.domain == domain) & (made.labels == label)].sum() == 2


@pytest.mark.parametrize("domains", [(), ("art", "photo")])
def test_imagefolder_with_its_own_test_folder(domains: tuple[str, ...], tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", domains, ("train", "test"), each=3)
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path / "root")
    assert made.class_names == ("cat", "dog")
    assert made.domain_names == domains
    assert made.is_test.sum() * 2 == len(made.is_test)
    assert (made.images[~made.is_test].max() < made.images[made.is_test].min()).all()


def test_imagefolder_decodes_every_mode(tmp_path: Path) -> None:
    """A red square in each of the ways in which files hold it comes out red; half-transparent comes out on white."""
    place = tmp_path / "mine" / "a"
    place.mkdir(parents=True)
    red = Image.new("RGB", (10, 8), (255, 0, 0))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    red.save(place / "01.png")
    red.convert("CMYK").save(place / "02.jpg", quality=100)
    palette.save(place / "03.gif")
    palette.save(place / "04.png", transparency=bytes([255] * 256))
    Image.new("RGBA", (10, 8), (255, 0, 0, 0)).save(place / "05.png")
    Image.new("RGBA", (10, 8), (255, 0, 0, 128)).save(place / "06.webp", lossless=True)
    Image.new("LA", (10, 8), (100, 255)).save(place / "07.png")
    Image.new("L", (10, 8), 100).save(place / "08.JPEG", quality=100)
    Image.new("1", (10, 8), 1).save(place / "09.bmp")
    Image.fromarray(np.full((8, 10), 100 * 256, np.uint16)).save(place / "10.png")
    Image.new("I", (10, 8), 100 * 256).save(place / "11.tiff")
    (tmp_path / "mine" / "b").mkdir()
    red.save(tmp_path / "mine" / "b" / "1.png")
    made = DATASETS["imagefolder"](path=tmp_path / "mine", image_size=4).load(tmp_path / "root")
    white, grey, pink = (255, 255, 255), (100, 100, 100), (255, 127, 127)
    expected = [(255, 0, 0)] * 4 + [white, pink, grey, grey, white, grey, grey, (255, 0, 0)]
    assert np.abs(made.images.astype(int) - np.array(expected)[:, None, None]).max() <= 3


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (10, 10), (1, 51), (5, 5)])
def test_imagefolder_resizes_and_cuts_the_middle(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "mine" / name)
    made = DATASETS["imagefolder"](path=tmp_path / "mine", image_size=5).load(tmp_path / "root")
    width, height = (side * 5 // min(size) for side in size)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    top, left = (height - 5) // 2, (width - 5) // 2
    assert np.abs(made.images[0] - whole[top : top + 5, left : left + 5]).max() <= 1


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda f: None, "cannot be read"),
        (lambda f: f.mkdir(), "expected images as class/image or domain/class/image"),
        (lambda f: image_tree(f, ("a/b",)), "for all files alike, found a/b/cat/0.png"),
        (lambda f: image_tree(image_tree(f), ("art",)), "found cat/0.png beside art/cat/0.png"),
        (lambda f: Image.new("L", (3, 3)).save(image_tree(f) / "top.png"), "found top.png beside cat/0.png"),
        (
            lambda f: image_tree(image_tree(f, (), ("train", "test")), ("val",)),
            "beside train/ and test/, found val/cat",
        ),
        (lambda f: (image_tree(f, (), ("train",)) / "test").mkdir(), "found 0 of 10 for testing"),
        (lambda f: image_tree(f, each=1), "found 0 of 2 for testing"),
        (lambda f: (image_tree(f) / "cat" / "1.png").write_bytes(b""), "cat/1.png: expected an image"),
        (lambda f: (image_tree(f) / "cat" / "1.jpg").write_bytes(b"<html>"), "cat/1.jpg: expected an image"),
    ],
)
def test_imagefolder_names_each_flaw(prepare: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    prepare(tmp_path / "mine")
    with pytest.raises(DataError) as told:
        DATASETS["imagefolder"](path=tmp_path / "mine", image_size=4).load(tmp_path / "root")
    assert str(tmp_path / "mine") in str(told.value)
    assert expected in str(told.value)
    assert not list((tmp_path / "root").rglob("*.npy")), "nothing half-made is left"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif", "ppm"])
def test_imagefolder_names_a_truncated_image(suffix: str, tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine")
    path = folder / "dog" / f"9.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"dog/9.{suffix}: expected an image, which cannot be read"):
        DATASETS["imagefolder"](path=folder, image_size=4).load(tmp_path / "root")


def test_imagefolder_sees_changed_files_and_options(tmp_path: Path) -> None:
    folder, root = image_tree(tmp_path / "mine"), tmp_path / "root"
    first = DATASETS["imagefolder"](path=folder, image_size=4).load(root)
    decoded = {path: path.stat().st_mtime_ns for path in root.rglob("images.npy")}
    DATASETS["imagefolder"](path=folder, image_size=4, test_share=0.5).load(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("images.npy")} == decoded, "decoded once"
    assert DATASETS["imagefolder"](path=folder, image_size=5).load(root).images.shape[1] == 5
    Image.new("RGB", (12, 9), "white").save(folder / "cat" / "0.png")
    changed = DATASETS["imagefolder"](path=folder, image_size=4).load(root)
    assert (changed.images[0] == 255).all()
    assert (changed.images[1:] == first.images[1:]).all()


@pytest.mark.parametrize("options", [{"image_size": 0}, {"test_share": 0}, {"test_share": 1}, {}])
def test_imagefolder_refuses_senseless_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DATASETS["imagefolder"]).validate_python({"path": tmp_path, **options} if options else options)


# ---------------------------------------------------------------- pickles


class Python2Pickler(pickle._Pickler):  # type: ignore[misc]
    """Writes what Python 2's cPickle and NumPy 1 wrote into the official files: byte strings, and numpy.core's names."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def save_string(self, value: Any) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        short = len(content) < 256
        self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content)))
        self.write(content)
        self.memoize(value)

    dispatch[str] = save_string
    dispatch[bytes] = save_string

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = "numpy.core.multiarray" if value.__name__ == "_reconstruct" else "numpy"
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global
    dispatch[type(len)] = save_global


def python2(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file).dump(value)
    return file.getvalue()


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def attack(canary: Path, protocol: int = 2) -> bytes:
    """A pickle that leaves the file `canary` if anything in it runs."""
    return pickle.dumps({"data": Call(os.system, f"touch '{canary}'"), "fine_labels": []}, protocol)


def test_the_attack_would_work(tmp_path: Path) -> None:
    pickle.loads(attack(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("write", [python2, lambda v: pickle.dumps(v, 3), lambda v: pickle.dumps(v, 4)])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", "<f8", "?"])
def test_plain_data_comes_back(write: Callable[[Any], bytes], dtype: str) -> None:
    matrix = np.arange(6).reshape(2, 3).astype(dtype)
    columns = np.asfortranarray(matrix)
    given = {"data": matrix, "columns": columns, "names": ["a", "b"], "nested": [(1, 2.5, None, True, matrix)]}
    read = safe_pickle.loads(write(given), "file")
    assert list(read) == list(given)
    for found in (read["data"], read["columns"], read["nested"][0][4]):
        assert found.dtype == matrix.dtype
        assert (found == matrix).all()
    assert read["nested"][0][:4] == (1, 2.5, None, True)
    assert read["names"] == ["a", "b"]


def test_the_old_form_is_the_old_form() -> None:
    codes = {code.name for code, _, _ in pickletools.genops(python2({"data": np.zeros(300, np.uint8), "n": ["x"]}))}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "REDUCE", "BUILD"} <= codes
    assert not codes & {"BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "system, protocol 0": lambda canary: attack(canary, 0),
    "system, protocol 2": lambda canary: attack(canary, 2),
    "system, protocol 5": lambda canary: attack(canary, 5),
    "eval": lambda canary: pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')")),
    "open": lambda canary: pickle.dumps(Call(open, str(canary), "w")),
    "getattr": lambda canary: pickle.dumps(Call(getattr, 1, "real")),
    "numpy.load": lambda canary: b"cnumpy\nload\n(S'x'\ntR.",
    "dotted name": lambda canary: b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
    "another of numpy": lambda canary: b"cnumpy.core.multiarray\nfromfile\n.",
    "instance": lambda canary: b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n.",
    "a type as data": lambda canary: b"cnumpy\ndtype\n.",
    "state of a type": lambda canary: b"cnumpy\ndtype\n(dS'text'\nS'x'\nsb.",
    "array without state": lambda canary: b"cnumpy.core.multiarray\n_reconstruct\n(I1\nI1\nI1\ntR.",
    "new without init": lambda canary: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)\x81.",
    "persistent": lambda canary: b"Pname\n.",
    "extension": lambda canary: b"\x80\x02\x82\x01.",
    "objects": lambda canary: pickle.dumps(np.array([Call(os.system, f"touch '{canary}'")], object), 2),
    "records": lambda canary: pickle.dumps(np.zeros(2, [("a", "i4"), ("b", "f4")]), 5),
    "text": lambda canary: pickle.dumps(np.array(["a"]), 5),
    "cut off": lambda canary: python2({"data": np.zeros(300, np.uint8)})[:-30],
    "empty": lambda canary: b"",
    "not a pickle": lambda canary: b"\x1f\x8b some gzip",
    "too small for its shape": lambda canary: python2(np.zeros(100, np.uint8)).replace(b"Kd\x85", b"Ke\x85"),
    "huge": lambda canary: python2(np.zeros(100, np.uint8)).replace(b"Kd\x85", b"J\xff\xff\xff\x7f\x85"),
    "endless": lambda canary: b"(lp0\ng0\na.",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_pickles_are_refused(kind: str, tmp_path: Path) -> None:
    content = HOSTILE[kind](tmp_path / "canary")
    if kind in ("too small for its shape", "huge"):
        assert content != python2(np.zeros(100, np.uint8)), "the test has to change something"
    with pytest.raises(DataError, match=r"^some file: expected a pickle of plain data and NumPy arrays, found "):
        safe_pickle.loads(content, "some file")
    assert not (tmp_path / "canary").exists()


def test_a_pickle_cannot_grow_without_end() -> None:
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]  # 2 ** 60 lists if each were copied where it occurs
    begin = time.monotonic()
    safe_pickle.loads(pickle.dumps(nested), "file")
    assert time.monotonic() - begin < 5


# ---------------------------------------------------------------- CIFAR-100

PIXELS = np.random.default_rng(1).integers(0, 256, (50, 3072)).astype(np.uint8)


def cifar_files(**change: Any) -> dict[str, Any]:
    """The official layout with 40 training and 10 test images; `change` replaces whole files (None: left out)."""
    files: dict[str, Any] = {
        "meta": {
            "fine_label_names": [f"fine {c}" for c in range(100)],
            "coarse_label_names": [f"coarse {c}" for c in range(20)],
        }
    }
    for name, part in (("train", slice(0, 40)), ("test", slice(40, 50))):
        numbers = range(50)[part]
        files[name] = {
            "filenames": [f"picture_s_{n:06}.png" for n in numbers],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": [n * 2 for n in numbers],
            "coarse_labels": [n % 20 for n in numbers],
            "data": PIXELS[part],
        }
    return {name: value for name, value in {**files, **change}.items() if value is not None}


def cifar_archive(root: Path, write: Callable[[Any], bytes] = python2, **change: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("cifar-100-python/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, value in cifar_files(**change).items():
            content = value if isinstance(value, bytes) else write(value)
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
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
def test_cifar100_reads_the_official_layout(unpacked: bool, tmp_path: Path) -> None:
    path = cifar_archive(tmp_path)
    if unpacked:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path.unlink()
    fine = DATASETS["cifar100"]().load(tmp_path)
    assert (fine.images == upright(PIXELS)).all()
    assert isinstance(fine.images, np.memmap)
    assert list(fine.labels) == [n * 2 for n in range(50)]
    assert list(fine.is_test) == [False] * 40 + [True] * 10
    assert fine.class_names == tuple(f"fine {c}" for c in range(100))
    coarse = DATASETS["cifar100"](coarse=True).load(tmp_path)
    assert list(coarse.labels) == [n % 20 for n in range(50)]
    assert coarse.class_names == tuple(f"coarse {c}" for c in range(20))
    assert len(list((tmp_path / "cache").glob("cifar100-*"))) == 1, "one cache for both"
    assert unpacked or not (tmp_path / "cifar-100-python").exists(), "nothing is unpacked"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"test": None}, "expected the official archive"),
        ({"train": [1, 2]}, "expected data in train, found [1, 2]"),
        ({"meta": {"other": 1}}, "expected fine_label_names in meta, found other"),
        ({"meta": {"fine_label_names": ["a"], "coarse_label_names": []}}, "expected 100 fine_label_names"),
        ({"train": cifar_files()["train"] | {"data": PIXELS[:40, :100]}}, "uint8 [N, 3072], found uint8 [40, 100]"),
        ({"train": cifar_files()["train"] | {"data": "x"}}, "expected data in train as uint8 [N, 3072], found 'x'"),
        ({"train": cifar_files()["train"] | {"fine_labels": [1]}}, "expected 40 fine_labels in 0..99 in train"),
        ({"test": cifar_files()["test"] | {"coarse_labels": [20] * 10}}, "10 coarse_labels in 0..19 in test"),
    ],
)
def test_cifar100_names_each_flaw(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = cifar_archive(tmp_path, **change)
    with pytest.raises(DataError) as told:
        DATASETS["cifar100"]().load(tmp_path)
    assert str(told.value).startswith(str(path))
    assert expected in str(told.value)
    assert left(tmp_path / "cache") == [], "nothing half-made is left"


@pytest.mark.parametrize("kind", ["cut off", "not an archive", "link", "folder"])
def test_cifar100_names_a_broken_archive(kind: str, tmp_path: Path) -> None:
    path = cifar_archive(tmp_path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "not an archive":
        path.write_bytes(b"<html>not found</html>")
    elif kind == "link":  # to a file outside the archive
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("cifar-100-python/train")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    else:
        path.unlink()
        (tmp_path / "cifar-100-python").mkdir()
        path = tmp_path / "cifar-100-python"
    with pytest.raises(DataError) as told:
        DATASETS["cifar100"]().load(tmp_path)
    assert str(told.value).startswith(f"{path}: expected")
    assert kind == "folder" or "169001437 bytes" in str(told.value)


@pytest.mark.parametrize("part", ["train", "test", "meta"])
def test_cifar100_runs_nothing(part: str, tmp_path: Path) -> None:
    cifar_archive(tmp_path, **{part: attack(tmp_path / "canary")})
    with pytest.raises(
        DataError, match=f"tar.gz: {part}: expected a pickle of plain data.*system, which is not admitted"
    ):
        DATASETS["cifar100"]().load(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_cifar100_is_downloaded_checked_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[DATASETS["cifar100"].__module__]
    official = cifar_archive(tmp_path / "server")
    served = official.read_bytes()

    def fetch(url: str, folder: str, name: str, md5: str) -> None:
        assert url == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
        assert md5 == "eb9058c3a382ffc7106e4002c42a8d85"
        (Path(folder) / name).write_bytes(served)
        assert not (tmp_path / "root" / name).exists(), "an unchecked file has not got its name"
        if served != official.read_bytes():
            raise RuntimeError("File not found or corrupted.")

    # A stand-in for the module saves seconds of importing; that the real one is called rightly is read from its source.
    torchvision = importlib.util.find_spec("torchvision")
    assert torchvision is not None
    source = (Path(str(torchvision.origin)).parent / "datasets" / "utils.py").read_text()
    real = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "download_url")
    assert [argument.arg for argument in real.args.args[:4]] == ["url", "root", "filename", "md5"]
    monkeypatch.setitem(sys.modules, "torchvision.datasets.utils", types.SimpleNamespace(download_url=fetch))
    served = served[:1000]
    with pytest.raises(DataError) as told:
        DATASETS["cifar100"]().load(tmp_path / "root")
    for said in (module.URL, module.MD5, "169001437 bytes", "put it at", str(tmp_path / "root" / "cifar-100-python")):
        assert said in str(told.value)
    assert not list((tmp_path / "root").iterdir())
    served = official.read_bytes()
    assert len(DATASETS["cifar100"]().load(tmp_path / "root").labels) == 50
    monkeypatch.undo()
    assert len(DATASETS["cifar100"]().load(tmp_path / "root").labels) == 50, "and not fetched again"


# ---------------------------------------------------------------- the cache


def test_cache_builds_once_and_maps(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        np.save(folder / "x.npy", np.arange(6).reshape(2, 3))
        np.save(folder / "names.npy", np.array(["a", "bc"]))

    for _ in range(3):
        made = cached_arrays(tmp_path / "deep" / "cache", build)
        assert sorted(made) == ["names", "x"]
        assert (made["x"] == np.arange(6).reshape(2, 3)).all()
        assert list(made["names"]) == ["a", "bc"]
        assert isinstance(made["x"], np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            made["x"][0, 0] = 1
    assert len(built) == 1
    assert not built[0].exists()


def damage(folder: Path) -> dict[str, Callable[[], Any]]:
    array, contents = folder / "x.npy", folder / cache.CONTENTS
    return {
        "cut off": lambda: array.write_bytes(array.read_bytes()[:-8]),
        "empty": lambda: array.write_bytes(b""),
        "missing": array.unlink,
        "no contents": contents.unlink,
        "half the contents": lambda: contents.write_text(contents.read_text()[:8]),
        "other contents": lambda: contents.write_text("[1]"),
        "another shape": lambda: np.save(array, np.zeros(3)),
        "objects": lambda: np.save(array, np.array([None]), allow_pickle=True),
        "a stranger's file": lambda: (array.unlink(), (folder / "notes.txt").write_text("x")),
    }


@pytest.mark.parametrize("kind", sorted(damage(Path())))
def test_a_damaged_cache_is_made_again(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build = lambda aside: np.save(aside / "x.npy", np.arange(1000))  # noqa: E731
    cached_arrays(folder, build)
    damage(folder)[kind]()
    assert (cached_arrays(folder, build)["x"] == np.arange(1000)).all()
    assert left(tmp_path) == ["cache"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        np.save(folder / "x.npy", np.arange(6))
        raise DataError("the third image is broken")

    with pytest.raises(DataError, match="third image"):
        cached_arrays(tmp_path / "cache", build)
    assert left(tmp_path) == []
    (tmp_path / ".cache.0123.tmp").mkdir()  # what a killed job leaves
    np.save(tmp_path / ".cache.0123.tmp" / "x.npy", np.zeros(2))
    made = cached_arrays(tmp_path / "cache", lambda aside: np.save(aside / "x.npy", np.arange(6)))
    assert (made["x"] == np.arange(6)).all()


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="this cache cannot be written"):
        cached_arrays(tmp_path / "file" / "cache", lambda aside: None)


def job(folder: Path, name: str, locked: bool, ready: Any) -> None:
    """A process that wants the cache and takes its time to build it."""
    if not locked:

        def no_lock(*_: Any) -> None:
            raise OSError("this file system has no locks")

        cache.fcntl.flock = no_lock  # type: ignore[assignment]

    def build(aside: Path) -> None:
        (folder.parent / f"built-{name}").touch()
        np.save(aside / "x.npy", np.arange(100_000))
        time.sleep(0.5)

    ready.wait()
    array = cached_arrays(folder, build)["x"]
    ready.wait()  # the other may be about to put its own in place
    if not (array == np.arange(100_000)).all():
        raise ValueError("half an array")


@pytest.mark.parametrize("locked", [True, False])
def test_two_processes_build_at_once(locked: bool, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fork = multiprocessing.get_context("fork")  # importing everything anew would take seconds
    ready = fork.Barrier(2)
    jobs = [fork.Process(target=job, args=(folder, name, locked, ready)) for name in "ab"]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
    assert [each.exitcode for each in jobs] == [0, 0]
    built = ["built-a", "built-b"]
    if locked:
        assert left(tmp_path) in (["built-a", "cache"], ["built-b", "cache"]), "the lock saves the second's work"
    else:
        assert left(tmp_path) == [*built, "cache"], "without locks both work, and both are right"


def test_threads_see_whole_caches(tmp_path: Path) -> None:
    """Readers, builders and somebody who breaks the cache, all at once: everybody only ever gets whole arrays."""
    folder, wrong, stop = tmp_path / "cache", [], threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                made = cached_arrays(folder, lambda aside: np.save(aside / "x.npy", np.arange(500)))
                if not (made["x"] == np.arange(500)).all():
                    wrong.append("half an array")
            except DataError as error:
                wrong.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        time.sleep(0.02)
        (folder / cache.CONTENTS).unlink(missing_ok=True)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
