"""The part of DomainNet that FedBN uses: ten classes in six domains, by FedBN's pickled lists.

Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization" (arXiv:2102.07623). Its
repository offers the lists (domainnet_dataset.zip) on Google Drive; the images are DomainNet's own archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedbench.data import Archive, Facts
from fedbench.sources import DOMAINNET, DOMAINNET_IMAGES, ImageDataset, Source, Table, fedbn_table

LISTS = "domainnet_dataset.zip"
CLASSES = (
    "bird",
    "feather",
    "headphones",
    "ice_cream",
    "teapot",
    "tiger",
    "whale",
    "windmill",
    "wine_glass",
    "zebra",
)


@dataclass(frozen=True)
class Dataset(ImageDataset):
    """Ten classes of DomainNet in its six domains."""

    citation: ClassVar[str] = "Li et al. 2021 (FedBN), arXiv:2102.07623; Peng et al. 2019 (DomainNet), arXiv:1812.01754"
    licence: ClassVar[str] = "fair use for non-commercial research and education, http://ai.bu.edu/M3SDA/"
    home = "domainnet"
    facts = Facts(0, 10, domains=6, page="https://github.com/med-air/FedBN (lists), http://ai.bu.edu/M3SDA/ (images)")
    archives = (Archive(LISTS, unpacked="DomainNet", remark="lists only"), *DOMAINNET_IMAGES)

    def table(self, sources: Mapping[str, Source]) -> Table:
        """By <domain>_{train,test}.pkl."""
        images = {domain: f"{domain}.zip" for domain in DOMAINNET}
        return fedbn_table(sources[LISTS], images, DOMAINNET, CLASSES, "DomainNet/")
