"""A user's own images in folders: class/image or domain/class/image, with or without train/ and test/ above."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field

from fedbench import data, rng
from fedbench.cache import cached_arrays
from fedbench.data import DataError, Samples
from fedbench.method import option

VERSION = 1  # raise it whenever decoding changes
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LAYOUT = "class/image or domain/class/image, either with or without train/ and test/ above"


@dataclass(frozen=True)
class Dataset(data.Dataset):
    """Images in folders named after their class, resized by the short side and cut to a square around the centre.

    Files that are not images by their suffix, and hidden ones, are passed over. Transparent images get a white ground.
    """

    citation: ClassVar[str] = "the user's own data"
    path: Path = field(metadata={"meaning": "the folder"})
    image_size: Annotated[int, Field(ge=1, le=4096)] = option(224, "pixels per side that images are stored with")
    test_share: Annotated[float, Field(gt=0, lt=1)] = option(
        0.2, "share of each class (of each domain) for testing; of no effect where there are train/ and test/"
    )

    def load(self, root: Path) -> Samples:
        """Map the decoded images; the first time they are decoded into a folder of `root`."""
        files = _scan(self.path)
        part, places = _places(self.path, files)
        class_names, labels = np.unique([place[-1] for place in places], return_inverse=True)
        domain_names, domain = np.unique(["/".join(place[:-1]) for place in places], return_inverse=True)
        is_test = self._draw_test(domain * len(class_names) + labels) if part is None else part
        if is_test.all() or not is_test.any():
            raise DataError(
                f"{self.path}: expected training and test images, found {is_test.sum()} of {len(files)} for testing"
            )
        folder = root / "cache" / f"imagefolder-{self._fingerprint(files)}"
        images = cached_arrays(folder, lambda aside: _decode(self.path, files, self.image_size, aside))["images"]
        return Samples(
            images=images,
            labels=labels.astype(np.int64),
            is_test=is_test,
            domain=domain.astype(np.int64) if len(places[0]) == 2 else None,
            class_names=tuple(map(str, class_names)),
            domain_names=tuple(map(str, domain_names)) if len(places[0]) == 2 else (),
        )

    def _draw_test(self, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A fixed draw of `test_share` of each group, at least one where there are two."""
        is_test = np.zeros(len(groups), dtype=bool)
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            count = min(max(1, round(self.test_share * len(members))), len(members) - 1)
            is_test[rng.numpy_stream("imagefolder", "test", int(group)).permutation(members)[:count]] = True
        return is_test

    def _fingerprint(self, files: list[Path]) -> str:
        """16 hex digits of all that may change a pixel; a changed file shows by its size or time, as in make."""
        digest = hashlib.sha256(repr((VERSION, PIL.__version__, self.image_size)).encode())
        for file in files:
            status = (self.path / file).stat()
            digest.update(repr((file.as_posix(), status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()[:16]


def _scan(folder: Path) -> list[Path]:
    """All image files below `folder`, relative to it, in the order of their names. Raises DataError."""

    def stop(error: OSError) -> None:
        raise DataError(
            f"{folder}: expected a folder of images, but {error.filename} cannot be read ({error.strerror})"
        )

    files = []
    for here, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        place = Path(here).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if len(place.parts) == 4:
            folders.clear()  # deeper than any layout, and a link may lead in circles
        files += [place / name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not files:
        raise DataError(f"{folder}: expected images as {LAYOUT}, found none ({', '.join(SUFFIXES)})")
    return sorted(files, key=lambda file: file.parts)


def _places(folder: Path, files: list[Path]) -> tuple[NDArray[np.bool_] | None, list[tuple[str, ...]]]:
    """Which files are for testing (None: the folders do not say), and each one's (class,) or (domain, class)."""
    places, part = [file.parts[:-1] for file in files], None
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        for file in files:
            if file.parts[0] not in ("train", "test"):
                raise DataError(f"{folder}: expected nothing beside train/ and test/, found {file}")
        part = np.array([place[0] == "test" for place in places])
        places = [place[1:] for place in places]
    depth = len(places[0])
    for file, place in zip(files, places, strict=True):
        if len(place) not in (1, 2) or len(place) != depth:
            raise DataError(f"{folder}: expected {LAYOUT}, for all files alike, found {file} beside {files[0]}")
    return part, places


def _decode(folder: Path, files: list[Path], size: int, aside: Path) -> None:
    """Write all images as one array, images.npy [N, size, size, 3]."""
    shape = (len(files), size, size, 3)
    images = np.lib.format.open_memmap(aside / "images.npy", mode="w+", dtype=np.uint8, shape=shape)

    def one(index: int) -> None:
        images[index] = _square(folder / files[index], size)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        for _ in pool.map(one, range(len(files))):
            pass
    images.flush()


def _square(path: Path, size: int) -> NDArray[np.uint8]:
    """One image, uint8 [size, size, 3]. Raises DataError."""
    try:
        with Image.open(path) as file:
            file.load()
            image: Image.Image = file
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 256).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # decoders raise what they like on a damaged file, and the file is named
        raise DataError(f"{path}: expected an image, which cannot be read ({type(error).__name__}: {error})") from error
