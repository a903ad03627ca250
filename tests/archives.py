"""Small archives with the exact layout and file formats of the official ones, for tests of their readers."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from fedbench.plan.plugins import plugins
from fedbench.sources.domains import DOMAINNET

DATASETS: dict[str, Any] = plugins().classes["dataset"]


# ---------------------------------------------------------------- images and archives


def jpeg(level: int, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> bytes:
    """A JPEG of one grey level, which tells which image it is; also as greyscale or CMYK, as real sets have some."""
    image = Image.new("L", size, level).convert("RGB" if mode == "RGB" else mode)
    if mode == "CMYK":
        image = Image.new("RGB", size, (level,) * 3).convert("CMYK")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def level(images: np.ndarray) -> list[int]:
    """The grey level of each image, to compare with the argument of `jpeg` (within 2)."""
    return [round(float(image.mean())) for image in images]


def make_zip(path: Path, files: Iterable[tuple[str, bytes]], folders: Iterable[str] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in folders:
            archive.writestr(f"{folder}/", b"")
        for name, content in files:
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: Iterable[tuple[str, bytes]], folders: Iterable[str] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for folder in folders:
            member = tarfile.TarInfo(f"{folder}/")
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def unpack(path: Path, into: Path) -> Path:
    """Unpack an archive with the usual tools, as a user would."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(into)
    else:
        with tarfile.open(path) as archive:
            archive.extractall(into, filter="data")
    return into


def publish(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, **change: Any) -> None:
    """Let the small archives in `folder` be the official ones: size and checksum are theirs, where some were known.

    How many images the whole dataset has is then unknown.
    """
    archives = []
    for archive in DATASETS[name].archives:
        path, known = folder / archive.name, {}
        if path.exists():
            if archive.size:
                known["size"] = path.stat().st_size
            if archive.md5:
                known["md5"] = hashlib.md5(path.read_bytes()).hexdigest()
        archives.append(dataclasses.replace(archive, **{**known, **change}))
    monkeypatch.setattr(DATASETS[name], "archives", tuple(archives))
    monkeypatch.setattr(DATASETS[name], "facts", dataclasses.replace(DATASETS[name].facts, images=0))


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
    """A pickle that creates the file `canary` if its code runs."""
    return pickle.dumps({"data": Call(os.system, f"touch '{canary}'"), "fine_labels": []}, protocol)


# ---------------------------------------------------------------- CIFAR

PIXELS = np.random.default_rng(1).integers(0, 256, (60, 3072)).astype(np.uint8)


def cifar100_files(**change: Any) -> dict[str, Any]:
    """40 training and 10 test images; `change` replaces whole files (None: left out)."""
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


def cifar10_files(**change: Any) -> dict[str, Any]:
    """Five training batches of 10 images and 10 test images."""
    files: dict[str, Any] = {
        "batches.meta": {
            "num_cases_per_batch": 10000,
            "label_names": [f"class {c}" for c in range(10)],
            "num_vis": 3072,
        }
    }
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = slice(number * 10, number * 10 + 10)
        files[name] = {
            "batch_label": f"training batch {number + 1} of 5",
            "labels": [n % 10 for n in range(60)[rows]],
            "data": PIXELS[rows],
            "filenames": [f"picture_s_{n:06}.png" for n in range(60)[rows]],
        }
    return {name: value for name, value in {**files, **change}.items() if value is not None}


def cifar_archive(folder: Path, name: str = "cifar100", write: Callable[[Any], bytes] = python2, **change: Any) -> Path:
    (archive,) = DATASETS[name].archives
    files = (cifar100_files if name == "cifar100" else cifar10_files)(**change)
    pickled = {part: value if isinstance(value, bytes) else write(value) for part, value in files.items()}
    inside = [(f"{archive.unpacked}/{part}", content) for part, content in pickled.items()]
    return make_tar(folder / archive.name, inside, folders=[archive.unpacked])


# ---------------------------------------------------------------- sets of image files


def tiny_imagenet(folder: Path, damaged: bool = False) -> Path:
    """200 classes of which the first two have three training images each, and four validation images."""
    wnids = [f"n{number:08}" for number in range(200, 0, -1)]  # the official list is in no order either
    home = "tiny-imagenet-200"
    files = [(f"{home}/wnids.txt", "\n".join(wnids).encode() + b"\n")]
    words = ["n00000001\tEgyptian cat", "n00000002\tcrane", "n00000003\tcrane, hoist", "n99999999\tentity"]
    files.append((f"{home}/words.txt", "\n".join(words).encode() + b"\n"))
    for label, wnid in enumerate(sorted(wnids)[:2]):
        for number in range(3):
            mode = "L" if number == 1 else "RGB"  # some official images are grey
            content = jpeg(40 * label + 10 * number, (64, 64), mode)
            if damaged and label == 1 and number == 2:
                content = content[: len(content) // 3]
            files.append((f"{home}/train/{wnid}/images/{wnid}_{number}.JPEG", content))
        files.append((f"{home}/train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t62\t62\n".encode()))
    notes = [f"val_{n}.JPEG\t{sorted(wnids)[n % 2]}\t0\t32\t44\t62" for n in range(4)]
    files.append((f"{home}/val/val_annotations.txt", "\n".join(notes).encode() + b"\n"))
    files += [(f"{home}/val/images/val_{n}.JPEG", jpeg(200 + 10 * n, (64, 64))) for n in range(4)]
    files += [(f"{home}/test/images/test_{n}.JPEG", jpeg(5, (64, 64))) for n in range(3)]
    return make_zip(folder / f"{home}.zip", files, folders=[home, f"{home}/train"])


def domainnet(folder: Path) -> None:
    """345 classes, one training image of each in clipart; a training and a grey or CMYK test image of two classes elsewhere."""
    names = [f"class_{label:03}" for label in range(345)]
    names[0], names[327] = "aircraft_carrier", "t-shirt"
    small = jpeg(100, (8, 8))
    for number, domain in enumerate(DOMAINNET):
        train = [(label, 1) for label in (range(345) if domain == "clipart" else (0, 1))]
        test = [(label, 2) for label in (0, 1)]
        path = lambda label, which: f"{domain}/{names[label]}/{domain}_{label + 1:03}_{which:06}.jpg"  # noqa: B023, E731
        files = [(path(*each), small) for each in train if each[0] > 1]
        for label, mode in ((0, "L"), (1, "CMYK")):
            files += [
                (path(label, which), jpeg(40 * number + 20 * label + which, mode=mode if which == 2 else "RGB"))
                for which in (1, 2)
            ]
        files.append((path(0, 99), b"an image that no list names"))
        make_zip(folder / f"{domain}.zip", files, folders=[domain])
        for part, rows in (("train", train), ("test", test)):
            (folder / f"{domain}_{part}.txt").write_text("".join(f"{path(*each)} {each[0]}\n" for each in rows))


def fedbn_lists(folder: str, classes: Iterable[str], domains: Iterable[str], path: Callable[..., str]) -> list[Any]:
    """The pickles of FedBN: (paths, names of classes), two training images and one test image of each class."""
    lists = []
    for domain in domains:
        for part, numbers in (("train", (1, 2)), ("test", (3,))):
            rows = [(path(domain, name, number), name) for name in classes for number in numbers]
            pair = (np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=object))
            lists.append((f"{folder}/{domain}_{part}.pkl", pickle.dumps(pair, 4)))
    return lists


def domainnet10(folder: Path) -> None:
    names = sys.modules[DATASETS["domainnet10"].__module__].CLASSES
    path = lambda domain, name, number: f"{domain}/{name}/{domain}_001_{number:06}.jpg"  # noqa: E731
    for order, domain in enumerate(DOMAINNET):
        images = [
            (path(domain, name, number), jpeg(40 * order + 4 * label))
            for label, name in enumerate(names)
            for number in (1, 2, 3)
        ]
        make_zip(folder / f"{domain}.zip", images, folders=[domain])
    lists = fedbn_lists("DomainNet", names, DOMAINNET, lambda *each: f"DomainNet/{path(*each)}")
    make_zip(folder / "domainnet_dataset.zip", lists, folders=["DomainNet"])


def office_caltech10(folder: Path) -> Path:
    module = sys.modules[DATASETS["office_caltech10"].__module__]
    path = lambda domain, name, number: f"office_caltech_10/{domain}/{name}/frame_{number:04}.jpg"  # noqa: E731
    files = [
        (path(domain, name, number), jpeg(60 * order + 5 * label, mode="CMYK" if number == 3 else "RGB"))
        for order, domain in enumerate(module.DOMAINS)
        for label, name in enumerate(module.CLASSES)
        for number in (1, 2, 3)
    ]
    files += fedbn_lists("office_caltech_10", module.CLASSES, module.DOMAINS, path)
    return make_zip(folder / "office_caltech_10_dataset.zip", files, folders=["office_caltech_10"])


def pacs(folder: Path, lists: bool = True, above: str = "PACS/kfold/") -> Path:
    """Five images of each class and domain; by the lists four are for training, and one is for testing."""
    module = sys.modules[DATASETS["pacs"].__module__]
    files = []
    for order, domain in enumerate(module.DOMAINS):
        rows = [
            (f"{domain}/{name}/pic_{n:03}.jpg", label) for label, name in enumerate(module.CLASSES) for n in range(1, 6)
        ]
        files += [(above + path, jpeg(60 * order + 8 * label)) for path, label in rows]
        for part, keep in (("train", rows[:]), ("crossval", rows[:]), ("test", rows)):
            chosen = [row for row in keep if part == "test" or (row[0].endswith("005.jpg") == (part == "crossval"))]
            if lists:
                text = "".join(f"{path} {label + 1}\n" for path, label in chosen)
                files.append((f"PACS/splits/{domain}_{part}_kfold.txt", text.encode()))
    return make_zip(folder / "PACS.zip", files)


def mat(**variables: Any) -> bytes:
    """A MATLAB file, compressed as the official ones are."""
    file = io.BytesIO()
    savemat(file, variables, do_compression=True)
    return file.getvalue()


def annotations(rows: Iterable[tuple[str, int]], labelled: bool = True) -> NDArray[Any]:
    """The struct array [1, N] of the official lists, of (file, class from 1 on); that of the test images has no classes."""
    boxes = [(f"bbox_{corner}", np.uint16(size)) for corner, size in (("x1", 3), ("y1", 4), ("x2", 300), ("y2", 200))]
    names = [*(name for name, _ in boxes), *(["class"] if labelled else []), "fname"]
    made = [(*(size for _, size in boxes), *([np.uint8(label)] if labelled else []), file) for file, label in rows]
    return np.array([made], dtype=[(name, object) for name in names])


def stanford_cars(folder: Path, **change: bytes) -> None:
    """Training images of the classes 1, 2 and 196, test images of 196, 1 and 2; `change` replaces lists."""
    names = np.array([[f"Make {c} Sedan 2012" for c in range(1, 197)]], dtype=object)
    train, test = (
        [(f"{n:05}.jpg", label) for n, label in enumerate(labels, 1)] for labels in ((1, 2, 196), (196, 1, 2))
    )
    lists = {
        "cars_meta": mat(class_names=names),
        "cars_train_annos": mat(annotations=annotations(train)),
        "cars_test_annos": mat(annotations=annotations(test, labelled=False)),
        "cars_test_annos_withlabels": mat(annotations=annotations(test)),
    } | change
    (folder / "cars_test_annos_withlabels.mat").write_bytes(lists.pop("cars_test_annos_withlabels"))
    kit = [(f"devkit/{name}.mat", content) for name, content in lists.items()]
    make_tar(folder / "car_devkit.tgz", [*kit, ("devkit/README.txt", b"This is ...")], folders=["devkit"])
    for part, first in (("train", 10), ("test", 100)):
        images = [
            (f"cars_{part}/{n:05}.jpg", jpeg(first + 20 * n, (40, 30), "L" if n == 2 else "RGB")) for n in (1, 2, 3)
        ]
        make_tar(folder / f"cars_{part}.tgz", images, folders=[f"cars_{part}"])


def inaturalist(folder: Path) -> None:
    """Users of 5, 2 and 1 images by User-120k; the same images in two cells by Geo-1k; three global test images."""
    users = {"alice": range(5), "7": range(5, 7), "bob": range(7, 8)}
    image = {n: f"{n:032x}" for n in range(20)}
    species = lambda n: ("Aves", "Turdus merula") if n % 2 else ("Plantae", "Bellis perennis")  # noqa: E731
    user_csv = "user_id,image_id,class,label\n" + "".join(
        f"{user},{image[n]},{n % 3},{n * 10}\n" for user, numbers in users.items() for n in numbers
    )
    geo_csv = "user_id,image_id,class,label\n" + "".join(
        f"cell{n // 4},{image[n]},{n % 3},{n * 10}\n" for n in range(8)
    )
    test_csv = "image_id,class,label\n" + "".join(f"{image[n]},{n % 3},{n * 10}\n" for n in (8, 9, 10))
    home = "inaturalist-user-120k"
    lists = [(f"{home}/federated_train_user_120k.csv", user_csv.encode()), (f"{home}/test.csv", test_csv.encode())]
    make_zip(folder / f"{home}.zip", lists, folders=[home])
    home = "inaturalist-geo"
    lists = [
        (f"{home}/federated_train_geo_{which}.csv", geo_csv.encode())
        for which in ("100", "300", "1k", "3k", "10k", "30k")
    ]
    make_zip(folder / f"{home}.zip", [*lists, (f"{home}/test.csv", test_csv.encode())], folders=[home])
    images = [
        (
            f"train_val_images/{'/'.join(species(n))}/{image[n]}.jpg",
            jpeg(10 * n + 5, (80, 60), "CMYK" if n == 6 else "RGB"),
        )
        for n in range(20)  # more than the lists name
    ]
    make_tar(folder / "train_val_images.tar.gz", images, folders=["train_val_images"])


ARCHIVES: dict[str, Callable[[Path], Any]] = {
    "cifar10": lambda folder: cifar_archive(folder, "cifar10"),
    "cifar100": lambda folder: cifar_archive(folder, "cifar100"),
    "tiny_imagenet": tiny_imagenet,
    "domainnet": domainnet,
    "domainnet10": domainnet10,
    "office_caltech10": office_caltech10,
    "pacs": pacs,
    "inaturalist": inaturalist,
    "stanford_cars": stanford_cars,
}


def official(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put small archives of the data set `name` where its data folder `root` has them, and let them be the official ones."""
    folder = root / DATASETS[name].home
    folder.mkdir(parents=True, exist_ok=True)
    ARCHIVES[name](folder)
    publish(monkeypatch, name, folder)
    return folder
