"""DomainNet: 586,575 images of 345 classes in six domains, by the official lists of the cleaned version.

Peng et al. 2019 (arXiv:1812.01754). The official lists are used unchanged; painting_train.txt is known to lack the class
t-shirt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedbench.data import DataError, Facts
from fedbench.sources import DOMAINNET, DOMAINNET_IMAGES, DOMAINNET_LISTS, ImageDataset, Source, Table


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """345 classes in the domains clipart, infograph, painting, quickdraw, real and sketch."""

    citation: ClassVar[str] = "Peng et al. 2019, Moment Matching for Multi-Source Domain Adaptation, arXiv:1812.01754"
    licence: ClassVar[str] = "fair use for non-commercial research and education, http://ai.bu.edu/M3SDA/"
    home = "domainnet"
    # the page: 48,129 + 51,605 + 72,266 + 172,500 + 172,947 + 69,128; the lists may differ by a few
    facts = Facts(586_575, 345, domains=6, page="http://ai.bu.edu/M3SDA/")
    archives = DOMAINNET_IMAGES + DOMAINNET_LISTS

    def table(self, sources: Mapping[str, Source]) -> Table:
        """By <domain>_{train,test}.txt, whose lines are ``<domain>/<class>/<file> <label>``."""
        files, labels, is_test, domains = [], [], [], []
        names: dict[int, str] = {}
        for number, domain in enumerate(DOMAINNET):
            for part in ("train", "test"):
                source = sources[f"{domain}_{part}.txt"]
                for line in source.read(f"{domain}_{part}.txt").decode().splitlines():
                    if not line.strip():
                        continue
                    path, _, text = line.strip().rpartition(" ")
                    parts, label = path.split("/"), int(text) if text.isdecimal() else -1
                    if len(parts) != 3 or not 0 <= label < 345 or names.setdefault(label, parts[1]) != parts[1]:
                        raise DataError(
                            f"{source.path}: expected lines of {domain}/<class>/<file> <0..344>, always the same number "
                            f"for a class, found {line!r:.120}"
                        )
                    files.append((f"{domain}.zip", path))
                    labels.append(label)
                    is_test.append(part == "test")
                    domains.append(number)
        if len(names) != 345:
            raise DataError(
                f"{sources['clipart_train.txt'].path.parent}: expected 345 classes in the lists, found {len(names)}"
            )
        return Table(
            files,
            np.array(labels, dtype=np.int64),
            np.array(is_test, dtype=bool),
            tuple(names[label] for label in range(345)),
            domain=np.array(domains, dtype=np.int64),
            domain_names=DOMAINNET,
        )
