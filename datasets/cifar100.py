"""CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 classes, from the official archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedbench.data import Archive, Facts, option
from fedbench.sources import CifarDataset


@dataclass(frozen=True)
class Dataset(CifarDataset):
    """50,000 training and 10,000 test images; fine labels (100) or the 20 superclasses."""

    home = "cifar100"
    facts = Facts(60_000, 100, page="https://www.cs.toronto.edu/~kriz/cifar.html")
    archives = (
        Archive(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            169_001_437,
            "eb9058c3a382ffc7106e4002c42a8d85",
            unpacked="cifar-100-python",
        ),
    )
    train: ClassVar[tuple[str, ...]] = ("train",)
    test: ClassVar[tuple[str, ...]] = ("test",)
    meta: ClassVar[str] = "meta"
    kinds: ClassVar[dict[str, tuple[str, int]]] = {
        "fine_labels": ("fine_label_names", 100),
        "coarse_labels": ("coarse_label_names", 20),
    }

    coarse: bool = option(False, "whether labels are the 20 superclasses instead of the 100 classes")

    @property
    def labels_used(self) -> str:
        """Fine or coarse."""
        return "coarse_labels" if self.coarse else "fine_labels"
