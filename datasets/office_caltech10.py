"""Office-Caltech10: 2,533 images of ten classes in four domains, in FedBN's packing and by its pickled lists.

Gong et al. 2012, "Geodesic Flow Kernel for Unsupervised Domain Adaptation"; train and test as in Li et al. 2021 (FedBN,
arXiv:2102.07623), whose repository offers the archive on Google Drive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedbench.data import Archive, Facts
from fedbench.sources import ImageDataset, Source, Table, fedbn_table

ARCHIVE = "office_caltech_10_dataset.zip"
DOMAINS = ("amazon", "caltech", "dslr", "webcam")
CLASSES = (
    "back_pack",
    "bike",
    "calculator",
    "headphones",
    "keyboard",
    "laptop_computer",
    "monitor",
    "mouse",
    "mug",
    "projector",
)


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """Ten classes of objects in the domains amazon, caltech, dslr and webcam."""

    citation: ClassVar[str] = (
        "Gong et al. 2012, Geodesic Flow Kernel; lists of Li et al. 2021 (FedBN), arXiv:2102.07623"
    )
    licence: ClassVar[str] = "not stated; images of Office-31 and Caltech-256, for research"
    home = "office_caltech10"
    facts = Facts(2_533, 10, domains=4, page="https://github.com/med-air/FedBN")
    archives = (Archive(ARCHIVE, unpacked="office_caltech_10"),)

    def table(self, sources: Mapping[str, Source]) -> Table:
        """By <domain>_{train,test}.pkl, whose paths begin at office_caltech_10/, as the names in the archive do."""
        return fedbn_table(sources[ARCHIVE], dict.fromkeys(DOMAINS, ARCHIVE), DOMAINS, CLASSES, "")
