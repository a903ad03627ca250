"""PACS: 9,991 images of seven classes as photos, art paintings, cartoons and sketches.

Li et al. 2017, "Deeper, Broader and Artier Domain Generalization" (arXiv:1710.03077). Copies of the archive have different
folders above the domains (``PACS/``, ``kfold/``, none). The authors' lists <domain>_{train,crossval}_kfold.txt cut a domain
90 to 10; they were made for another task, in which whole domains are held out. Copies without lists need ``parts: drawn``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedbench.data import Archive, DataError, Facts, Ints, option, rng
from fedbench.sources import ImageDataset, Source, Table, decode

ARCHIVE = "PACS.zip"
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """Seven classes in the domains art_painting, cartoon, photo and sketch."""

    citation: ClassVar[str] = "Li et al. 2017, Deeper, Broader and Artier Domain Generalization, arXiv:1710.03077"
    licence: ClassVar[str] = "not stated; for research"
    home = "pacs"
    facts = Facts(9_991, 7, domains=4, page="https://sketchx.eecs.qmul.ac.uk/downloads/")
    archives = (Archive(ARCHIVE, unpacked="PACS"),)

    parts: Literal["kfold", "drawn"] = option(
        "kfold",
        "kfold: training and test images by the authors' lists (train, crossval); drawn: by test_share",
        always_shown=True,
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = option(
        0.2,
        "share of each class of each domain for testing; without effect with kfold",
        needs=("`parts: drawn`", lambda options: options.parts == "drawn"),
    )

    def table(self, sources: Mapping[str, Source]) -> Table:
        """The table from the lists, or from the folders."""
        source = sources[ARCHIVE]
        base = source.base("photo/dog/")
        samples = self._listed(source) if self.parts == "kfold" else self._drawn(source, base)
        return Table(
            [(ARCHIVE, base + path) for path, _ in samples],
            np.array([CLASSES.index(path.split("/")[1]) for path, _ in samples], dtype=np.int64),
            np.array([test for _, test in samples], dtype=bool),
            CLASSES,
            domain=np.array([DOMAINS.index(path.split("/")[0]) for path, _ in samples], dtype=np.int64),
            domain_names=DOMAINS,
        )

    def _listed(self, source: Source) -> list[tuple[str, bool]]:
        """(path from the domain on, whether it is for testing), from lines of ``<domain>/<class>/<file> <1..7>``."""
        samples = []
        for domain in DOMAINS:
            for part in ("train", "crossval"):
                name = f"{domain}_{part}_kfold.txt"
                try:
                    text = source.read(source.base(name) + name).decode()
                except DataError as error:
                    raise DataError(f"{error}; without the authors' lists take parts: drawn") from error
                for line in text.splitlines():
                    path, _, number = line.strip().rpartition(" ")
                    parts = path.split("/")
                    legal = len(parts) == 3 and parts[0] == domain and parts[1] in CLASSES
                    if line.strip() and not (legal and number == str(CLASSES.index(parts[1]) + 1)):
                        raise DataError(
                            f"{source.path}: expected {domain}/<class>/<file> <1..7> in {name}, found {line!r:.80}"
                        )
                    if line.strip():
                        samples.append((path, part == "crossval"))
        return samples

    def _drawn(self, source: Source, base: str) -> list[tuple[str, bool]]:
        groups: dict[tuple[str, str], list[str]] = {}
        for name in sorted(source.names):
            parts = name.removeprefix(base).split("/")
            listed = name.startswith(base) and len(parts) == 3 and parts[0] in DOMAINS and parts[1] in CLASSES
            if listed and decode.is_image(name):
                groups.setdefault((parts[0], parts[1]), []).append("/".join(parts))
        samples = []
        for (domain, label), paths in groups.items():
            count = min(max(1, round(self.test_share * len(paths))), len(paths) - 1)
            order: Ints = rng.numpy_stream("pacs", "test", domain, label).permutation(len(paths))
            samples += [(paths[i], rank < count) for rank, i in enumerate(order)]
        return samples
