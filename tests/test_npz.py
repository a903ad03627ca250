"""A user's npz file gives back the saved arrays, every flaw is named, and no code in it runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import DATASETS, attack
from followed import Page
from pydantic import TypeAdapter, ValidationError

from fedbench.cli.data import main
from fedbench.data import DataError


def arrays(**change: Any) -> dict[str, Any]:
    """Twelve images of three classes; a change to None leaves the array out."""
    columns = {
        "images": np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3)).astype(np.uint8),
        "labels": np.arange(12) % 3,
        "is_test": np.arange(12) >= 8,
    }
    return {name: value for name, value in {**columns, **change}.items() if value is not None}


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
    ("change", "expected", "actual"),
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
        ({"user": np.full(12, -1)}, "user from 0 on for training images", "found -1; -1, nobody, is for test images"),
        ({"labels": np.array([1, "x", None] * 4, object)}, "arrays without objects", "Object arrays"),
    ],
)
def test_npz_names_each_flaw(change: dict[str, Any], expected: str, actual: str, tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", **change)
    with pytest.raises(DataError) as error:
        DATASETS["npz"](path=path).load(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{path}: expected ")
    assert expected in message
    assert actual in message


def test_test_images_may_belong_to_nobody(tmp_path: Path) -> None:
    user = np.array([5, 5, 0, 0, 9, 9, 1_000_000_000, 5, -1, -1, 5, 0])
    made = DATASETS["npz"](path=save(tmp_path / "mine.npz", user=user)).load(tmp_path)
    assert made.user.tolist() == user.tolist()
    assert made.global_test.tolist() == [8, 9]


def test_users_are_counted_and_not_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user = np.array([5, 5, 0, 0, 9, 9, 1_000_000_000, 5, -1, -1, 5, 0])
    path = save(tmp_path / "mine.npz", user=user)
    assert main(["prepare", "npz", "--root", str(tmp_path), "--set", f"path={path}"]) == 0
    assert "3 classes, 4 users\n" in capsys.readouterr().out


def test_verify_finds_changed_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "mine.npz")
    words = ["verify", "npz", "--root", str(tmp_path), "--set", f"path={path}"]
    assert main(words) == 0
    content = bytearray(path.read_bytes())
    content[content.index(arrays()["images"].tobytes()) + 40] ^= 1
    path.write_bytes(content)
    assert main(words) == 1
    assert "expected arrays without objects in an intact .npz file" in capsys.readouterr().out


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.npz")
    with pytest.raises(DataError, match=r"cannot be read \(expected a file, found a named pipe\)"):
        DATASETS["npz"](path=tmp_path / "mine.npz").load(tmp_path)


@pytest.mark.parametrize("names", [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels")])
def test_messages_for_files_of_keras_and_medmnist_say_how_to_convert_them(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    np.savez(tmp_path / "mine.npz", **{name: np.zeros(3) for name in names})
    with pytest.raises(DataError, match=r"docs/data.md shows how to convert files of Keras and MedMNIST"):
        DATASETS["npz"](path=tmp_path / "mine.npz").load(tmp_path)


def test_a_message_for_a_file_of_no_known_form_names_its_arrays_and_no_converter(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="found pictures") as raised:
        DATASETS["npz"](path=tmp_path / "mine.npz").load(tmp_path)
    assert "MedMNIST" not in str(raised.value)


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
    with pytest.raises(DataError) as error:
        DATASETS["npz"](path=path).load(tmp_path)
    assert str(path) in str(error.value)
    assert "expected" in str(error.value)
    assert "found" in str(error.value)


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


@pytest.mark.parametrize(("place", "name"), [(0, "mnist.npz"), (1, "bloodmnist.npz")])
@pytest.mark.parametrize("grey", [True, False])
def test_the_conversions_on_the_page_give_what_is_read(place: int, name: str, grey: bool, tmp_path: Path) -> None:
    """The code of docs/data.md, run on files laid out like those of Keras and of MedMNIST."""
    draw = np.random.default_rng(0)
    parts = {"train": 6, "test": 3} if name == "mnist.npz" else {"train": 6, "val": 2, "test": 3}
    shape = (8, 8) if grey else (8, 8, 3)
    pictures = {part: draw.integers(0, 256, (count, *shape)).astype(np.uint8) for part, count in parts.items()}
    labels = {part: (np.arange(count) % 3).astype(np.uint8) for part, count in parts.items()}
    if name == "mnist.npz":
        content = {f"x_{part}": pictures[part] for part in parts} | {f"y_{part}": labels[part] for part in parts}
    else:
        content = {f"{part}_images": pictures[part] for part in parts}
        content |= {f"{part}_labels": labels[part][:, None] for part in parts}
    np.savez(tmp_path / name, **content)
    code = Page("docs/data.md").blocks("python")[place]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    made = DATASETS["npz"](path=tmp_path / "mine.npz").load(tmp_path)
    whole = np.concatenate(list(pictures.values()))
    assert (made.images == (whole[..., None] if grey else whole)).all()
    assert made.labels.tolist() == np.concatenate(list(labels.values())).tolist()
    assert np.flatnonzero(made.is_test).tolist() == list(range(len(whole) - 3, len(whole)))
