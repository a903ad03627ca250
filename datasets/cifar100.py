"""CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 classes, from the official archive."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench import data
from fedbench.cache import cached_arrays
from fedbench.data import DataError, Samples
from fedbench.method import option
from fedbench.safe_pickle import loads

FOLDER = "cifar-100-python"
ARCHIVE = f"{FOLDER}.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SIZE, MD5 = 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"
PARTS = ("train", "test", "meta")


@dataclass(frozen=True)
class Dataset(data.Dataset):
    """50,000 training and 10,000 test images; fine labels (100) or the 20 superclasses.

    The archive, or the folder that it unpacks to, is taken from the data folder if it is there, and else downloaded.
    """

    citation: ClassVar[str] = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
    licence: ClassVar[str] = "not stated; free for research with citation, https://www.cs.toronto.edu/~kriz/cifar.html"
    coarse: bool = option(False, "the 20 superclasses as labels instead of the 100 classes")

    def load(self, root: Path) -> Samples:
        """Map the images; the first time they are taken out of the archive into a folder of `root`."""
        source = _source(root)
        arrays = cached_arrays(
            root / "cache" / f"cifar100-{_fingerprint(source)}", lambda aside: _unpack(source, aside)
        )
        kind = "coarse" if self.coarse else "fine"
        return Samples(
            images=arrays["images"],
            labels=np.array(arrays[kind]),
            is_test=np.array(arrays["is_test"]),
            class_names=tuple(map(str, arrays[f"{kind}_names"])),
        )


def _source(root: Path) -> Path:
    """The folder or archive below `root`; downloaded if neither is there."""
    for path in (root / FOLDER, root / ARCHIVE):
        if path.exists():
            return path
    _download(root)
    return root / ARCHIVE


def _download(root: Path) -> None:
    """Fetch the archive, check it, and only then give it its name."""
    from torchvision.datasets.utils import download_url  # here, since importing it takes seconds

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as aside:
            download_url(URL, aside, ARCHIVE, MD5)
            (Path(aside) / ARCHIVE).replace(root / ARCHIVE)
    except Exception as error:  # no network, no room, a proxy's page in place of the file: the way out is the same
        raise DataError(
            f"CIFAR-100 could not be downloaded ({type(error).__name__}: {error}); fetch {URL} ({SIZE} bytes, md5 {MD5}) "
            f"by other means and put it at {root / ARCHIVE}"
        ) from error


def _fingerprint(source: Path) -> str:
    """16 hex digits that change when the archive or one of the unpacked files does."""
    files = [source / name for name in PARTS] if source.is_dir() else [source]
    try:
        status = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise DataError(f"{source}: expected the files {', '.join(PARTS)}, but {error.filename} is missing") from error
    return hashlib.sha256(repr(status).encode()).hexdigest()[:16]


def _read(source: Path) -> dict[str, Any]:
    """The three pickles, as plain data. Nothing of the archive is unpacked to disk, and nothing in it can run."""
    if source.is_dir():
        return {name: loads((source / name).read_bytes(), str(source / name)) for name in PARTS}
    try:
        contents = {}
        with tarfile.open(source) as archive:
            for name in PARTS:
                file = archive.extractfile(f"{FOLDER}/{name}")
                if file is None:
                    raise DataError(f"{source}: expected {FOLDER}/{name} to be a file")
                contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, KeyError) as error:
        raise DataError(
            f"{source}: expected the official archive ({SIZE} bytes) with {', '.join(PARTS)} in {FOLDER}/, found "
            f"{source.stat().st_size} bytes and: {error}"
        ) from error
    return {name: loads(content, f"{source}: {name}") for name, content in contents.items()}


def _unpack(source: Path, aside: Path) -> None:
    """Write images, labels and names of `source` into the folder `aside`."""
    read = _read(source)
    names = {kind: _field(source, read, "meta", f"{kind}_label_names") for kind in ("fine", "coarse")}
    for kind, expected in (("fine", 100), ("coarse", 20)):
        if not (isinstance(names[kind], list) and len(names[kind]) == expected):
            raise DataError(f"{source}: expected {expected} {kind}_label_names in meta, found {names[kind]!r:.60}")
        np.save(aside / f"{kind}_names.npy", np.array(names[kind], dtype=np.str_))
    images: list[NDArray[np.uint8]] = []
    labels: dict[str, list[data.Ints]] = {"fine": [], "coarse": []}
    for part in ("train", "test"):
        pixels = _field(source, read, part, "data")
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)):
            form = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else f"{pixels!r:.60}"
            raise DataError(f"{source}: expected data in {part} as uint8 [N, 3072], found {form}")
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        for kind, found in labels.items():
            column = _field(source, read, part, f"{kind}_labels")
            legal = range(len(names[kind]))
            if not (
                isinstance(column, list) and len(column) == len(pixels) and all(label in legal for label in column)
            ):
                raise DataError(
                    f"{source}: expected {len(pixels)} {kind}_labels in 0..{len(legal) - 1} in {part}, "
                    f"found {column!r:.60}"
                )
            found.append(np.array(column, dtype=np.int64))
    np.save(aside / "images.npy", np.concatenate(images))
    np.save(aside / "is_test.npy", np.repeat([False, True], [len(part) for part in images]))
    for kind, found in labels.items():
        np.save(aside / f"{kind}.npy", np.concatenate(found))


def _field(source: Path, read: dict[str, Any], part: str, name: str) -> Any:
    if not isinstance(read[part], dict) or name not in read[part]:
        found = ", ".join(map(str, read[part])) if isinstance(read[part], dict) else f"{read[part]!r:.60}"
        raise DataError(f"{source}: expected {name} in {part}, found {found}")
    return read[part][name]
