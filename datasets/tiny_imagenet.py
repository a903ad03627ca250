"""Tiny ImageNet: 110,000 images of 64 x 64 pixels in 200 classes, from Stanford's CS231n (Le and Yang 2015).

The labels of the official test images were never published, so the validation images are the test set, as is usual. Classes
are in the order of their WordNet ids. The checksum is not official: many loaders on GitHub agree on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedbench.data import Archive, DataError, Facts
from fedbench.sources import ImageDataset, Source, Table, decode

HOME = "tiny-imagenet-200"


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """100,000 training and 10,000 test images (the official validation set) of 200 classes."""

    citation: ClassVar[str] = "Le and Yang 2015, Tiny ImageNet Visual Recognition Challenge, CS231N report"
    licence: ClassVar[str] = (
        "that of ImageNet: non-commercial research and education, https://www.image-net.org/download"
    )
    home = "tiny_imagenet"
    facts = Facts(110_000, 200, page="http://cs231n.stanford.edu/tiny-imagenet-200.zip")
    archives = (
        Archive(
            "tiny-imagenet-200.zip",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            248_100_043,
            "90528d7ca1a48142e341f4ef8d21d0de",
            official=False,
            unpacked=HOME,
        ),
    )

    def table(self, sources: Mapping[str, Source]) -> Table:
        """By wnids.txt, train/<wnid>/images/ and val/val_annotations.txt."""
        (archive, source), *_ = sources.items()
        classes = sorted(source.read(f"{HOME}/wnids.txt").decode().split())
        number = {wnid: label for label, wnid in enumerate(classes)}
        if len(classes) != 200 or len(number) != 200:
            raise DataError(f"{source.path}: expected 200 classes in wnids.txt, found {len(number)}")
        files, labels = [], []
        for name in source.names:
            parts = name.split("/")
            is_training = len(parts) == 5 and parts[1] == "train" and parts[3] == "images" and parts[2] in number
            if is_training and decode.is_image(name):
                files.append((archive, name))
                labels.append(number[parts[2]])
        train = len(files)
        for line in source.read(f"{HOME}/val/val_annotations.txt").decode().splitlines():
            name, wnid, *_ = [*line.split("\t"), "", ""]
            if wnid not in number:
                raise DataError(
                    f"{source.path}: expected a file and a class in val_annotations.txt, found {line!r:.80}"
                )
            files.append((archive, f"{HOME}/val/images/{name}"))
            labels.append(number[wnid])
        words = dict(
            line.split("\t", 1) for line in source.read(f"{HOME}/words.txt").decode().splitlines() if "\t" in line
        )
        names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in classes]
        often = Counter(names)  # of the two kinds of crane, each gets its id
        names = [name if often[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, classes, strict=True)]
        return Table(files, np.array(labels, dtype=np.int64), np.arange(len(files)) >= train, tuple(names))
