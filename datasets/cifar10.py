"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes, from the official archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedbench.data import Archive, Facts
from fedbench.sources import CifarDataset


@dataclass(frozen=True)
class Dataset(CifarDataset):
    """50,000 training and 10,000 test images."""

    home = "cifar10"
    facts = Facts(60_000, 10, page="https://www.cs.toronto.edu/~kriz/cifar.html")
    archives = (
        Archive(
            "cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            170_498_071,
            "c58f30108f718f92721af3b95e74349a",
            unpacked="cifar-10-batches-py",
        ),
    )
    train: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{number}" for number in range(1, 6))
    test: ClassVar[tuple[str, ...]] = ("test_batch",)
    meta: ClassVar[str] = "batches.meta"
    kinds: ClassVar[dict[str, tuple[str, int]]] = {"labels": ("label_names", 10)}
