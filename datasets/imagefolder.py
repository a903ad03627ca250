"""A user's own images in folders: class/image or domain/class/image, with or without train/ and test/ above."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench import data
from fedbench.data import DataError, Extent, Samples, option, rng
from fedbench.sources import cached_arrays, decode, open_source, pixels

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

    skip: Annotated[float, Field(ge=0, le=1)] = option(0.0, "largest share of damaged images that are left out")

    def load(self, root: Path) -> Samples:
        """Map the decoded images; the first time they are decoded into a folder of `root`."""
        files, listed = self._listed()
        folder = root / "cache" / f"imagefolder-{self._fingerprint(files)}"
        names = [(0, file.as_posix()) for file in files]

        def build(aside: Path) -> dict[str, Any]:
            left_out = pixels.write([open_source(self.path)], names, str, self.image_size, self.skip, aside)
            return {"skipped": left_out}

        arrays = cached_arrays(folder, build, resumes=True)
        kept = arrays["kept"]
        columns = {name: getattr(listed, name) for name in ("labels", "is_test", "domain")}
        chosen = {name: value[kept] for name, value in columns.items() if value is not None}
        return replace(listed, images=arrays["images"], **chosen)

    def extent(self, root: Path) -> Extent:
        """By the names of folders and files; nothing is decoded."""
        return Extent.of(self._listed()[1])

    def _listed(self) -> tuple[list[Path], Samples]:
        """All image files, and what their folders say of them; the images of these samples are empty."""
        files = _scan(self.path)
        part, places = _places(self.path, files)
        class_names, labels = np.unique([place[-1] for place in places], return_inverse=True)
        domain_names, domain = np.unique(["/".join(place[:-1]) for place in places], return_inverse=True)
        is_test = self._draw_test(domain * len(class_names) + labels) if part is None else part
        if is_test.all() or not is_test.any():
            raise DataError(
                f"{self.path}: expected training and test images, found {is_test.sum()} of {len(files)} for testing"
            )
        domains = len(places[0]) == 2
        return files, Samples(
            images=np.empty((len(files), 0, 0, 3), dtype=np.uint8),
            labels=labels.astype(np.int64),
            is_test=is_test,
            domain=domain.astype(np.int64) if domains else None,
            class_names=tuple(map(str, class_names)),
            domain_names=tuple(map(str, domain_names)) if domains else (),
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
        digest = hashlib.sha256(repr((decode.VERSION, self.image_size, self.skip)).encode())
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
