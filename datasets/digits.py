"""Digits: the handwritten digits in scikit-learn, a small dataset of real images without any download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from fedbench.data import Dataset as Base
from fedbench.data import Extent, Facts, Samples, option


@dataclass(frozen=True)
class Dataset(Base):
    """1,797 handwritten digits of 8 x 8 pixels, enlarged to 32 x 32; every fifth image of a class is for testing."""

    citation: ClassVar[str] = (
        "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
        "https://doi.org/10.24432/C50P49"
    )
    licence: ClassVar[str] = "CC BY 4.0"
    facts: ClassVar[Facts | None] = Facts(1_797, 10, page="part of scikit-learn, nothing is downloaded")
    test_every: int = option(5, "every n-th image of each class is for testing")

    def load(self, root: Path) -> Samples:
        """Read the digits in scikit-learn; `root` is not used."""
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0..16
        large = np.stack(
            [np.asarray(Image.fromarray(digit).resize((32, 32), Image.Resampling.BICUBIC)) for digit in grey]
        )
        images = np.repeat(large[..., None], 3, axis=3)
        labels = digits.target.astype(np.int64)
        is_test = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            is_test[members[self.test_every - 1 :: self.test_every]] = True
        return Samples(images=images, labels=labels, is_test=is_test, class_names=tuple(map(str, range(10))))

    def extent(self, root: Path) -> Extent:
        """By loading, which fetches and writes nothing."""
        return Extent.of(self.load(root))
