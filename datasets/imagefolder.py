"""A user's own images in folders: class/image or domain/class/image, with or without train/ and test/ above."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedbench import data
from fedbench.data import DataError, Extent, Samples, option, rng
from fedbench.sources import (
    cached_arrays,
    check_regular,
    decode,
    describe_cache,
    files_below,
    hidden,
    open_source,
    pixels,
    verify_cache,
)

LAYOUT = "class/image or domain/class/image, either with or without train/ and test/ above"
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}


@dataclass(frozen=True)
class Dataset(data.Dataset):
    """Images in folders named after their class, resized by the short side and centre cropped to a square.

    Hidden files and files without the suffix of an image are ignored. Transparent images get a white background.
    """

    citation: ClassVar[str] = "the user's own data"
    path: Path = field(metadata={"meaning": "the folder"})
    image_size: Annotated[int, Field(ge=1, le=4096)] = option(224, "pixels per side of the stored images")
    test_share: Annotated[float, Field(gt=0, lt=1)] = option(
        0.2, "share of each class (of each domain) for testing; without effect where folders say what is for testing"
    )

    skip: Annotated[float, Field(ge=0, le=1)] = option(0.0, "largest share of damaged images to leave out")

    def load(self, root: Path) -> Samples:
        """Map the decoded images. The first call decodes them into a folder below `root`. Raises DataError."""
        files, listed = self._listed()
        names = [(0, file.as_posix()) for file in files]

        def build(aside: Path) -> dict[str, Any]:
            skipped = pixels.write([open_source(self.path)], names, str, self.image_size, self.skip, aside)
            return {"skipped": skipped}

        arrays = cached_arrays(self._cache(root, files), build, resumes=True)
        kept = arrays["kept"]
        columns = {name: getattr(listed, name) for name in ("labels", "is_test", "domain")}
        kept_columns = {name: value[kept] for name, value in columns.items() if value is not None}
        return replace(listed, images=arrays["images"], **kept_columns)

    def extent(self, root: Path) -> Extent:
        """The size from the names of folders and files. Nothing is decoded."""
        return Extent.of(self._listed()[1])

    def files_read(self, folder: Path) -> list[Path]:
        """The image files. Raises DataError if the folders have another layout."""
        return [folder / file for file in self._listed()[0]]

    def verify(self, root: Path) -> list[str]:
        """Damage to the folder's layout and to the cache; every original is decoded again."""
        try:
            files, _ = self._listed()
        except DataError as error:
            return [str(error)]
        damage = []
        for file in files:
            try:
                decode.square(self.path / file, self.image_size)
            except DataError as error:
                damage.append(str(error))
        return damage + verify_cache(self._cache(root, files))

    def info(self, root: Path) -> list[str]:
        """The place of the cache, and the images that it leaves out."""
        return describe_cache(self._cache(root, self._listed()[0]))

    def _listed(self) -> tuple[list[Path], Samples]:
        """All image files, and samples with the labels that their folders give. The images of these samples are empty."""
        files = _scan(self.path)
        is_test, places = _places(self.path, files)
        class_names, labels = np.unique([place[-1] for place in places], return_inverse=True)
        domain_names, domain = np.unique(["/".join(place[:-1]) for place in places], return_inverse=True)
        if is_test is None:
            is_test = self._draw_test(domain * len(class_names) + labels)
        if is_test.all() or not is_test.any():
            raise DataError(
                f"{self.path}: expected training and test images, found {is_test.sum()} of {len(files)} for testing"
            )
        has_domains = len(places[0]) == 2
        return files, Samples(
            images=np.empty((len(files), 0, 0, 3), dtype=np.uint8),
            labels=labels.astype(np.int64),
            is_test=is_test,
            domain=domain.astype(np.int64) if has_domains else None,
            class_names=_texts(self.path, class_names.tolist()),
            domain_names=_texts(self.path, domain_names.tolist()) if has_domains else (),
        )

    def _draw_test(self, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A fixed draw of `test_share` of each group, at least one image of a group of two or more."""
        is_test = np.zeros(len(groups), dtype=bool)
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            count = min(max(1, round(self.test_share * len(members))), len(members) - 1)
            is_test[rng.numpy_stream("imagefolder", "test", int(group)).permutation(members)[:count]] = True
        return is_test

    def _cache(self, root: Path, files: list[Path]) -> Path:
        """The cache folder, named after everything that may change a pixel, including the size and time of each file."""
        digest = hashlib.sha256(repr((decode.VERSION, self.image_size, self.skip)).encode())
        for file in files:
            status = (self.path / file).stat()
            digest.update(repr((file.as_posix(), status.st_size, status.st_mtime_ns)).encode())
        return root / "cache" / f"imagefolder-{digest.hexdigest()[:16]}"


def _scan(folder: Path) -> list[Path]:
    """All image files below `folder`, relative to it, in the order of their names. Raises DataError."""
    try:
        # One level deeper than any layout, so that a deeper file is refused and not overlooked.
        below = [file for file in files_below(folder, depth=4) if decode.is_image(file.name) and not hidden(file.name)]
        for file in below:
            check_regular(folder / file)
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder of images, but {error.filename} cannot be read ({error.strerror})"
        ) from error
    if not below:
        raise DataError(f"{folder}: expected images as {LAYOUT}, found none ({', '.join(decode.SUFFIXES)})")
    return sorted(below, key=lambda file: file.parts)


def _places(folder: Path, files: list[Path]) -> tuple[NDArray[np.bool_] | None, list[tuple[str, ...]]]:
    """Which files are for testing (None: the folders do not say), and each file's (class,) or (domain, class).

    Raises DataError for any other layout.
    """
    places, is_test = [file.parts[:-1] for file in files], None
    tops = sorted({place[0] for place in places if place})
    parts = [top for top in tops if top.casefold() in PARTS]
    flat = all(len(place) == 1 for place in places)  # class/image: "valid" beside "invalid" is a class
    if parts and not (flat and len(parts) < len(tops)):
        is_test = _is_test(folder, tops, parts, files)
        places = [place[1:] for place in places]
    if all(place and place[-1].casefold() == "images" for place in places):  # class/images/image
        places = [place[:-1] for place in places]
    depth = len(places[0])
    for file, place in zip(files, places, strict=True):
        if len(place) not in (1, 2) or len(place) != depth:
            raise DataError(f"{folder}: expected {LAYOUT}, for all files alike, found {file} beside {files[0]}")
    if all(place[-1].casefold() in PARTS for place in places):
        raise DataError(
            f"{folder}: expected {LAYOUT}, but every image lies in a folder called {places[0][-1]} or alike, such as "
            f"{files[0]}: move these folders above the classes"
        )
    return is_test, places


def _is_test(folder: Path, tops: Sequence[str], parts: Sequence[str], files: list[Path]) -> NDArray[np.bool_]:
    """The images of test/ or, if there is none, of val/. Raises DataError if the folders `tops` do not determine that."""
    part_of = {top: PARTS[top.casefold()] for top in parts}
    named = ", ".join(f"{top}/" for top in tops)
    others = [file for file in files if file.parts[0] not in part_of]
    if others:
        raise DataError(
            f"{folder}: expected nothing beside {', '.join(f'{top}/' for top in parts)}, found {others[0]}; a domain "
            "cannot have such a name, so rename the folders or move the others away"
        )
    kinds = sorted(part_of.values())
    if kinds not in (["test", "train"], ["train", "validation"]):
        advice = (
            f"give {folder / tops[0]} as the path to have a test part drawn from it"
            if len(kinds) == 1
            else "keep one folder of training images and one of test images"
        )
        raise DataError(f"{folder}: expected train/ with test/ or with val/, found {named}; {advice}")
    return np.array([part_of[file.parts[0]] != "train" for file in files])


def _texts(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Names of folders as text. Names that are not UTF-8 are read as Latin-1. Raises DataError if two become equal."""
    texts = []
    for name in names:
        raw = os.fsencode(name)
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError:
            texts.append(raw.decode("latin-1"))
    for text in texts:
        if texts.count(text) > 1:
            raise DataError(f"{folder}: two folders are called {text!r}, in different encodings; rename one of them")
    return tuple(texts)
