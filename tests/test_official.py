"""Datasets of image files: each official layout, in every form, gives the right images, labels, domains and users."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import (
    DATASETS,
    annotations,
    attack,
    level,
    make_zip,
    mat,
    official,
    pacs,
    publish,
    stanford_cars,
    tiny_imagenet,
    unpack,
)

from fedbench.data import DataError, Samples, split
from fedbench.plan.plugins import plugins
from fedbench.sources.archive import open_source
from fedbench.sources.domains import DOMAINNET

SMALL = {"image_size": 8}


def near(actual: list[int], expected: list[int]) -> bool:
    """JPEG and CMYK change a grey level by a little."""
    return len(actual) == len(expected) and all(abs(a - b) <= 3 for a, b in zip(actual, expected, strict=True))


# ---------------------------------------------------------------- Tiny ImageNet


@pytest.mark.parametrize("form", ["archive", "unpacked"])
def test_tiny_imagenet(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("tiny_imagenet", tmp_path, monkeypatch)
    if form == "unpacked":
        unpack(folder / "tiny-imagenet-200.zip", folder)
        (folder / "tiny-imagenet-200.zip").unlink()
    made = DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)
    # six training images of two classes (40 * class + 10 * number), then val_0 to val_3, whose classes alternate
    assert near(level(made.images), [0, 10, 20, 40, 50, 60, 200, 210, 220, 230])
    assert list(made.labels) == [0, 0, 0, 1, 1, 1, 0, 1, 0, 1]
    assert list(made.is_test) == [False] * 6 + [True] * 4
    assert made.images.shape[1:] == (8, 8, 3)
    assert made.num_classes == 200
    assert made.class_names[:4] == ("Egyptian cat", "crane (n00000002)", "crane (n00000003)", "n00000004")


def test_a_truncated_image_is_left_out_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_imagenet").mkdir()
    tiny_imagenet(tmp_path / "tiny_imagenet", damaged=True)
    publish(monkeypatch, "tiny_imagenet", tmp_path / "tiny_imagenet")
    with pytest.raises(DataError) as error:
        DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)
    assert "1 of 10 images cannot be used, more than the share of 0.001 that may be left out" in str(error.value)
    assert "n00000002_2.JPEG: expected an image, which cannot be read" in str(error.value)
    assert not list((tmp_path / "cache").rglob("images.npy")), "nothing half-made is left"
    monkeypatch.setattr("fedbench.sources.pixels.SHOWN", 0)  # a long list is told in a file
    with pytest.raises(DataError, match=r"and 1 more, all in .*unreadable\.txt"):
        DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)
    (whole,) = (tmp_path / "cache").glob("*.unreadable.txt")
    (line,) = whole.read_text().splitlines()
    assert "n00000002_2.JPEG: expected an image, which cannot be read" in line
    dataset = DATASETS["tiny_imagenet"](**SMALL, skip=0.1)
    made = dataset.load(tmp_path)
    # the last image takes the place of the damaged one
    assert near(level(made.images), [0, 10, 20, 40, 50, 230, 200, 210, 220])
    assert list(made.labels) == [0, 0, 0, 1, 1, 1, 0, 1, 0]
    assert list(made.is_test) == [False] * 5 + [True] + [True] * 3
    lines = dataset.info(tmp_path)
    (place,) = (number for number, line in enumerate(lines) if "1 images left out" in line)
    assert "n00000002_2.JPEG: expected an image, which cannot be read" in lines[place + 1]
    with pytest.raises(DataError, match=r"1 of 10 images were left out when this cache was made, more than"):
        DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)


# ---------------------------------------------------------------- parts of a dataset, and files listed twice


def of_size(monkeypatch: pytest.MonkeyPatch, name: str, images: int) -> None:
    """Let the whole dataset `name` have so many images."""
    monkeypatch.setattr(DATASETS[name], "facts", dataclasses.replace(DATASETS[name].facts, images=images))


@pytest.mark.parametrize("lacking", ["some training images", "all training images", "a validation image"])
def test_a_part_of_tiny_imagenet_is_refused(lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("tiny_imagenet", tmp_path, monkeypatch)
    unpack(folder / "tiny-imagenet-200.zip", folder)
    (folder / "tiny-imagenet-200.zip").unlink()
    of_size(monkeypatch, "tiny_imagenet", 10)
    assert len(DATASETS["tiny_imagenet"](**SMALL).load(tmp_path).labels) == 10
    (tmp_path / "cache").rename(tmp_path / "other")
    part = {"some training images": "train/n00000001/images/*_1.JPEG", "all training images": "train/*/images/*.JPEG"}
    for path in (folder / "tiny-imagenet-200").glob(part.get(lacking, "val/images/val_2.JPEG")):
        path.unlink()
    with pytest.raises(DataError) as error:
        DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)
    if lacking == "a validation image":
        assert "val/images/val_2.JPEG: not in " in str(error.value)
    else:
        images = 9 if lacking == "some training images" else 4
        assert f"tiny_imagenet: expected 10 images, found {images}: the archive or folder is only a part" in str(
            error.value
        )
    assert not list(tmp_path.glob("cache/*/images.npy"))
    if lacking == "some training images":
        assert len(DATASETS["tiny_imagenet"](**SMALL, skip=0.1).load(tmp_path).labels) == 9, "allowed by skip"


def test_no_training_images_are_refused_with_any_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("tiny_imagenet", tmp_path, monkeypatch)
    unpack(folder / "tiny-imagenet-200.zip", folder)
    (folder / "tiny-imagenet-200.zip").unlink()
    for path in (folder / "tiny-imagenet-200").glob("train/*/images/*.JPEG"):
        path.unlink()
    with pytest.raises(DataError, match=r"expected training and test images, found 0 and 4"):
        DATASETS["tiny_imagenet"](**SMALL, skip=1).load(tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_part_of_cifar_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(name, tmp_path, monkeypatch)
    of_size(monkeypatch, name, 70)
    with pytest.raises(
        DataError, match=rf"{name}: expected 70 images, found (50|60): the archive or folder is only a p"
    ):
        DATASETS[name]().load(tmp_path)


@pytest.mark.parametrize("stray", [".DS_Store", "._n00000001_0.JPEG", "Thumbs.db", "notes.txt"])
def test_stray_files_in_tiny_imagenet_are_no_images(
    stray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official("tiny_imagenet", tmp_path, monkeypatch)
    unpack(folder / "tiny-imagenet-200.zip", folder)
    (folder / "tiny-imagenet-200.zip").unlink()
    (folder / "tiny-imagenet-200" / "train" / "n00000001" / "images" / stray).write_bytes(b"?")
    assert len(DATASETS["tiny_imagenet"](**SMALL, skip=0).load(tmp_path).labels) == 10


def test_a_file_listed_twice_is_two_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("tiny_imagenet", tmp_path, monkeypatch)
    unpack(folder / "tiny-imagenet-200.zip", folder)
    (folder / "tiny-imagenet-200.zip").unlink()
    notes = folder / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    lines = notes.read_text()
    notes.write_text(lines + lines.splitlines()[2] + "\n")
    dataset = DATASETS["tiny_imagenet"](**SMALL, skip=0)
    made = dataset.load(tmp_path)
    assert near(level(made.images), [0, 10, 20, 40, 50, 60, 200, 210, 220, 220, 230])
    assert list(made.labels) == [0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1]
    assert any("val/images/val_2.JPEG is listed 2 times" in line for line in dataset.info(tmp_path))


def test_pacs_keeps_all_rows_of_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs(tmp_path / "pacs")
    unpack(tmp_path / "pacs" / "PACS.zip", tmp_path / "pacs")
    (tmp_path / "pacs" / "PACS.zip").unlink()
    of_size(monkeypatch, "pacs", 141)
    with pytest.raises(DataError, match=r"pacs: expected 141 images, found 140"):
        DATASETS["pacs"](**SMALL).load(tmp_path)
    with open(tmp_path / "pacs" / "PACS" / "splits" / "photo_train_kfold.txt", "a") as file:
        file.write("photo/dog/pic_001.jpg 1\n")
    assert len(DATASETS["pacs"](**SMALL).load(tmp_path).labels) == 141


def test_a_file_for_training_and_testing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs(tmp_path / "pacs")
    publish(monkeypatch, "pacs", tmp_path / "pacs")
    unpack(tmp_path / "pacs" / "PACS.zip", tmp_path / "pacs")
    (tmp_path / "pacs" / "PACS.zip").unlink()
    with open(tmp_path / "pacs" / "PACS" / "splits" / "photo_crossval_kfold.txt", "a") as file:
        file.write("photo/dog/pic_001.jpg 1\n")
    with pytest.raises(
        DataError, match=r"photo/dog/pic_001.jpg is listed 2 times, with different classes or for train"
    ):
        DATASETS["pacs"](**SMALL).load(tmp_path)


def test_a_page_saved_as_the_archive_is_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "tiny_imagenet").mkdir()
    path = tmp_path / "tiny_imagenet" / "tiny-imagenet-200.zip"
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")
    with pytest.raises(DataError) as error:
        DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)
    assert str(error.value) == (
        f"{path}: expected a zip or tar archive, found 31 bytes that begin with b'<!DOCTYPE html><'; delete {path}, and "
        "the same command fetches it again"
    )


def test_a_page_saved_as_a_list_is_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("domainnet", tmp_path, monkeypatch)
    path = folder / "real_train.txt"
    path.write_bytes(b"<!DOCTYPE html>\n<html>404</html>")
    with pytest.raises(DataError) as error:
        DATASETS["domainnet"](**SMALL).load(tmp_path)
    assert "found '<!DOCTYPE html>'; if this is not the official file, delete " in str(error.value)
    assert str(error.value).endswith(f"delete {path}, and the same command fetches it again")


def test_tiny_imagenet_names_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "tiny-imagenet-200.zip", [("other/readme.txt", b"hello")])
    publish(monkeypatch, "tiny_imagenet", tmp_path)
    with pytest.raises(DataError) as error:
        DATASETS["tiny_imagenet"](**SMALL).load(tmp_path)
    assert str(error.value) == f"{path}: expected tiny-imagenet-200/wnids.txt in it, found other/readme.txt"


# ---------------------------------------------------------------- DomainNet


def test_domainnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official("domainnet", tmp_path, monkeypatch)
    made = DATASETS["domainnet"](**SMALL).load(tmp_path)
    assert made.num_classes == 345
    assert (made.class_names[0], made.class_names[327]) == ("aircraft_carrier", "t-shirt")
    assert made.domain_names == DOMAINNET
    assert made.domain is not None
    assert list(np.bincount(made.domain)) == [347, 4, 4, 4, 4, 4]
    for number in range(6):  # level 40 * domain + 20 * label + 1 for training and 2 for test images
        for label in (0, 1):
            for test in (False, True):
                (row,) = np.flatnonzero((made.domain == number) & (made.labels == label) & (made.is_test == test))
                assert near(level(made.images[[row]]), [40 * number + 20 * label + 1 + test])
    assert sorted(made.labels[(made.domain == 0) & ~made.is_test]) == list(range(345))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("clipart_train.txt", "clipart/aircraft_carrier/a.jpg 345"),
        ("sketch_test.txt", "sketch/airplane/a.jpg 0"),  # 0 is the aircraft carrier
        ("real_train.txt", "real/aircraft_carrier/a.jpg"),
        ("real_test.txt", "aircraft_carrier/a.jpg 0"),
    ],
)
def test_domainnet_names_a_wrong_line(name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("domainnet", tmp_path, monkeypatch)
    with open(folder / name, "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError) as error:
        DATASETS["domainnet"](**SMALL).load(tmp_path)
    assert str(error.value).startswith(f"{folder / name}: expected lines of ")
    assert repr(line) in str(error.value)


def test_a_list_leads_nowhere_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("domainnet", tmp_path, monkeypatch)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    with open(folder / "real_test.txt", "a") as file:
        file.write("../aircraft_carrier/secret.jpg 0\n")
    with pytest.raises(DataError, match=r"\.\./aircraft_carrier/secret.jpg: not in .*real.zip"):
        DATASETS["domainnet"](**SMALL).load(tmp_path)


@pytest.mark.parametrize("name", ["domainnet10", "office_caltech10"])
@pytest.mark.parametrize("form", ["archive", "unpacked"])
def test_lists_of_fedbn(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official(name, tmp_path, monkeypatch)
    module = sys.modules[DATASETS[name].__module__]
    if form == "unpacked":
        for path in folder.glob("*.zip"):
            unpack(path, folder)
            path.unlink()
    made: Samples = DATASETS[name](**SMALL).load(tmp_path)
    domains = 6 if name == "domainnet10" else 4
    step, per_domain = (4, 40) if name == "domainnet10" else (5, 60)
    assert made.class_names == module.CLASSES
    assert made.domain is not None
    assert len(made.domain_names) == domains
    assert len(made.labels) == domains * 10 * 3
    assert made.is_test.sum() * 3 == len(made.labels)
    expected = made.domain * per_domain + made.labels * step
    assert near(level(made.images), expected.tolist())


FORMS: dict[str, Any] = {
    "lists": lambda paths, names: (paths.tolist(), names.tolist()),
    "arrays of objects": lambda paths, names: (paths.astype(object), names),
    "arrays of text": lambda paths, names: (paths, names.astype(str)),
    "an array of text [2, N]": lambda paths, names: np.array([paths, names.astype(str)]),
    "an array of objects [2, N]": lambda paths, names: np.array([paths.astype(object), names]),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_lists_of_fedbn_in_every_form(
    form: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official("office_caltech10", tmp_path, monkeypatch)
    expected = DATASETS["office_caltech10"](**SMALL).load(tmp_path)
    zipped = folder / "office_caltech_10_dataset.zip"
    with zipfile.ZipFile(zipped) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    for name in files:
        if name.endswith(".pkl"):
            files[name] = pickle.dumps(FORMS[form](*pickle.loads(files[name])), protocol)
    made = DATASETS["office_caltech10"](**SMALL).prepare(
        tmp_path / "other", make_zip(tmp_path / zipped.name, files.items())
    )
    assert made.domain is not None
    for column in ("labels", "domain", "is_test", "images"):
        assert (getattr(made, column) == getattr(expected, column)).all()


def test_fedbn_lists_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("office_caltech10", tmp_path, monkeypatch)
    with zipfile.ZipFile(folder / "office_caltech_10_dataset.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    files["office_caltech_10/dslr_train.pkl"] = attack(tmp_path / "canary")
    make_zip(folder / "office_caltech_10_dataset.zip", files.items())
    with pytest.raises(
        DataError, match=r"dslr_train.pkl: expected a pickle of plain data.*system, which is not admitted"
    ):
        DATASETS["office_caltech10"](**SMALL).load(tmp_path)
    assert not (tmp_path / "canary").exists()
    for wrong in (
        [1, 2],
        (["a"], []),
        (["a.jpg"], ["sofa"]),
        ([1], ["mug"]),
        np.zeros((2, 3)),
        np.zeros(2),
        {"a": [], "b": []},
    ):
        files["office_caltech_10/dslr_train.pkl"] = pickle.dumps(wrong)
        make_zip(folder / "office_caltech_10_dataset.zip", files.items())
        with pytest.raises(DataError, match=r"dslr_train.pkl|expected a pickle"):
            DATASETS["office_caltech10"](**SMALL).load(tmp_path)


# ---------------------------------------------------------------- PACS


@pytest.mark.parametrize("above", ["PACS/kfold/", "kfold/", "", "PACS/Raw images/kfold/"])
def test_pacs_by_the_authors_lists(above: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs(tmp_path / "pacs", above=above)
    publish(monkeypatch, "pacs", tmp_path / "pacs")
    made = DATASETS["pacs"](**SMALL).load(tmp_path)
    assert made.domain is not None
    assert len(made.labels) == 4 * 7 * 5
    assert made.is_test.sum() == 4 * 7, "the fifth of five"
    assert near(level(made.images), (60 * made.domain + 8 * made.labels).tolist())
    assert made.class_names[0] == "dog"


def test_pacs_without_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pacs(tmp_path / "mine", lists=False)
    publish(monkeypatch, "pacs", tmp_path / "mine")
    with pytest.raises(DataError, match=r"art_painting_train_kfold.txt in it.*take parts: drawn"):
        DATASETS["pacs"](**SMALL).prepare(tmp_path, path)
    made = DATASETS["pacs"](**SMALL, parts="drawn", test_share=0.4).prepare(tmp_path, path)
    assert made.domain is not None
    groups = made.domain * 7 + made.labels
    assert list(np.bincount(groups[made.is_test])) == [2] * 28
    assert near(level(made.images), (60 * made.domain + 8 * made.labels).tolist())


@pytest.mark.parametrize(("pictures", "test_share", "tested"), [(1, 0.4, 0), (2, 0.1, 1), (3, 0.99, 2)])
def test_of_a_class_of_pacs_without_lists_one_picture_stays_for_training(
    pictures: int, test_share: float, tested: int, tmp_path: Path
) -> None:
    """A picture outside the folders of domains and classes is none of the dataset."""
    places = [f"photo/dog/{n}.jpg" for n in range(pictures)]
    for place in (*places, *(f"sketch/{name}/1.jpg" for name in ("dog", "house")), "photo/cat/1.jpg", "photo/1.jpg"):
        (tmp_path / "pacs" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pacs" / place).write_bytes(b"")
    dataset = DATASETS["pacs"](**SMALL, parts="drawn", test_share=test_share)
    rows = dataset._drawn(open_source(tmp_path / "pacs", ""), "")
    assert sorted(path for path, _ in rows) == [*places, "sketch/dog/1.jpg", "sketch/house/1.jpg"]
    assert [sum(is_test for path, is_test in rows if path.startswith(name)) for name in ("photo", "sketch")] == [
        tested,
        0,
    ]


# ---------------------------------------------------------------- Stanford Cars


@pytest.mark.parametrize("form", ["archive", "unpacked", "labels in devkit"])
def test_stanford_cars(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("stanford_cars", tmp_path, monkeypatch)
    if form != "archive":
        for path in folder.glob("*.tgz"):
            unpack(path, folder)
            path.unlink()
    if form == "labels in devkit":
        (folder / "cars_test_annos_withlabels.mat").rename(folder / "devkit" / "cars_test_annos_withlabels.mat")
    made = DATASETS["stanford_cars"](**SMALL).load(tmp_path)
    # cars_test.tgz comes before cars_train.tgz: three test images of levels 100 + 20 n, three training images of 10 + 20 n
    assert near(level(made.images), [120, 140, 160, 30, 50, 70])
    assert list(made.labels) == [195, 0, 1, 0, 1, 195], "the files count classes from 1"
    assert list(made.is_test) == [True] * 3 + [False] * 3
    assert (made.num_classes, made.class_names[195]) == (196, "Make 196 Sedan 2012")


def test_stanford_cars_with_one_image_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = mat(annotations=annotations([("00002.jpg", 7)]))  # SciPy gives no list then
    (tmp_path / "stanford_cars").mkdir()
    stanford_cars(tmp_path / "stanford_cars", cars_train_annos=lists, cars_test_annos_withlabels=lists)
    publish(monkeypatch, "stanford_cars", tmp_path / "stanford_cars")
    made = DATASETS["stanford_cars"](**SMALL).load(tmp_path)
    assert list(made.labels) == [6, 6]
    assert near(level(made.images), [140, 50])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (mat(annotations=annotations([("00001.jpg", 197)])), r"a class in 1..196 in .*found '00001.jpg', 197"),
        (mat(annotations=annotations([("../00001.jpg", 1)])), r"found '../00001.jpg', 1"),
        (mat(annotations=np.arange(3)), r"expected class in the annotations of"),
        (mat(other=1), r"expected a MATLAB file with annotations .*KeyError"),
        (mat(annotations=annotations([("00001.jpg", 1)]))[:-20], r"expected a MATLAB file"),
        (b"\0" * 124 + b"\0\x02IM", r"expected a MATLAB file"),  # version 7.3 is another format, HDF5
        (b"", r"expected a MATLAB file"),
    ],
)
def test_stanford_cars_names_a_wrong_list(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stanford_cars").mkdir()
    stanford_cars(tmp_path / "stanford_cars", cars_train_annos=content)
    publish(monkeypatch, "stanford_cars", tmp_path / "stanford_cars")
    with pytest.raises(DataError, match=says) as error:
        DATASETS["stanford_cars"](**SMALL).load(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "stanford_cars" / "car_devkit.tgz"))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_stanford_cars_runs_nothing(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stanford_cars").mkdir()
    hostile = attack(tmp_path / "canary", protocol)
    for content in (hostile, mat(annotations=np.frombuffer(hostile, np.uint8))):
        stanford_cars(tmp_path / "stanford_cars", cars_train_annos=content)
        publish(monkeypatch, "stanford_cars", tmp_path / "stanford_cars")
        with pytest.raises(DataError):
            DATASETS["stanford_cars"](**SMALL).load(tmp_path)
    assert not (tmp_path / "canary").exists()


# ---------------------------------------------------------------- iNaturalist


@pytest.mark.parametrize("form", ["archive", "unpacked"])
def test_inaturalist_users(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("inaturalist", tmp_path, monkeypatch)
    if form == "unpacked":
        for path in [*folder.glob("*.zip"), *folder.glob("*.tar.gz")]:
            unpack(path, folder)
            path.unlink()
    made = DATASETS["inaturalist"](**SMALL).load(tmp_path)
    assert made.num_classes == 1203
    assert near(level(made.images), [10 * n + 5 for n in range(11)]), "the eleven images of the lists, one of them CMYK"
    assert list(made.labels) == [n % 3 for n in range(11)]
    assert made.user is not None
    # user "7" comes first, then alice (5 images), then bob; images 8 to 10 are the global test set
    assert list(made.user) == [1] * 5 + [0] * 2 + [2] + [-1] * 3
    assert list(made.is_test) == [False] * 8 + [True] * 3
    # Clients are the users with two images or more; a part of their own is for testing them (the partition's test: own).
    natural = plugins().classes["partition"]["natural"]
    dealt = split(made, natural(test="own", test_share=0.4), 2)  # type: ignore[call-arg]
    assert [sorted([*dealt.train[k], *dealt.test[k]]) for k in (0, 1)] == [[5, 6], [0, 1, 2, 3, 4]]
    assert [len(dealt.test[k]) for k in (0, 1)] == [1, 2]
    assert list(dealt.global_test(made)) == [8, 9, 10]


def test_inaturalist_cells_share_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official("inaturalist", tmp_path, monkeypatch)
    DATASETS["inaturalist"](**SMALL).load(tmp_path)
    for clients in ("geo_100", "geo_300", "geo_1k", "geo_3k", "geo_10k", "geo_30k"):
        made = DATASETS["inaturalist"](clients=clients, **SMALL).load(tmp_path)
        assert made.user is not None
        assert list(made.user) == [0] * 4 + [1] * 4 + [-1] * 3
        assert list(made.is_test) == [False] * 8 + [True] * 3
    assert len(list((tmp_path / "cache").glob("inaturalist-8px-*"))) == 1, "decoded once for all splits"


@pytest.mark.parametrize("written", ["geo_{}", "geo-{}", "inat_geo{}", "{}"])
def test_inaturalist_cells_however_their_files_are_called(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official("inaturalist", tmp_path, monkeypatch)
    rows = "user_id,image_id,class,label\n" + "".join(f"cell,{n:032x},0,0\n" for n in range(8))
    lists = {
        scale: f"federated_train_{written.format(scale)}.csv" for scale in ("100", "300", "1000", "3K", "10k", "30k")
    }
    files = [(name, f"{rows}{scale},{9:032x},1,0\n".encode()) for scale, name in lists.items()]
    make_zip(folder / "inaturalist-geo.zip", [*files, ("test.csv", f"image_id,class,label\n{10:032x},0,0\n".encode())])
    made = DATASETS["inaturalist"](clients="geo_1k", **SMALL).load(tmp_path)
    assert list(made.user) == [1] * 8 + [0, -1], "1000 comes before cell"


def test_inaturalist_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("inaturalist", tmp_path, monkeypatch)
    make_zip(folder / "inaturalist-geo.zip", [("inaturalist-geo/federated_train_geo_1k.csv", b""), ("a/test.csv", b"")])
    with pytest.raises(
        DataError, match=r"expected one federated_train.*geo_100.csv, found .*federated_train_geo_1k.csv"
    ):
        DATASETS["inaturalist"](clients="geo_100", **SMALL).load(tmp_path)
    lists: list[Any] = [("x/federated_train_user_120k.csv", b"user,image_id,class\na,b,1\n"), ("x/test.csv", b"")]
    make_zip(folder / "inaturalist-user-120k.zip", lists)
    with pytest.raises(DataError, match=r"expected the column user_id in x/federated_train_user_120k.csv"):
        DATASETS["inaturalist"](**SMALL).load(tmp_path)
    lists = [("x/federated_train_user_120k.csv", b"user_id,image_id,class\na,../../b,1\n"), ("x/test.csv", b"")]
    make_zip(folder / "inaturalist-user-120k.zip", lists)
    with pytest.raises(DataError, match=r"expected an image and a class number"):
        DATASETS["inaturalist"](**SMALL).load(tmp_path)


@pytest.mark.parametrize(("names", "count"), [([*range(199), 0], 199), (range(199), 199), (range(201), 201)])
def test_tiny_imagenet_lists_200_different_classes(names: Any, count: int, tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").mkdir()
    (tmp_path / "tiny-imagenet-200" / "wnids.txt").write_text("\n".join(f"n{name:08}" for name in names))
    with pytest.raises(DataError, match=f"expected 200 classes in wnids.txt, found {count}"):
        DATASETS["tiny_imagenet"]().table({"x.zip": open_source(tmp_path)})
