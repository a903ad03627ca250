"""Parts that datasets of several domains share: the archives of DomainNet, and the pickled lists of FedBN.

DomainNet: Peng et al. 2019, "Moment Matching for Multi-Source Domain Adaptation" (arXiv:1812.01754), the cleaned version of
http://ai.bu.edu/M3SDA/. The checksums are not official: independent loaders on GitHub agree on them. FedBN: Li et al.
2021 (arXiv:2102.07623), https://github.com/med-air/FedBN, whose loader shows what the pickles hold (code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedbench.data import Archive, DataError
from fedbench.sources.archive import Source
from fedbench.sources.image_dataset import Table
from fedbench.sources.safe_pickle import load_pickle

_SITE = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_IMAGES = {  # {domain: (folder of the site, md5, size in words)}
    "clipart": ("groundtruth/", "cd0d8f2d77a4e181449b78ed62bccf1e", "1.3 GB"),
    "infograph": ("", "720380b86f9e6ab4805bb38b6bd135f8", "4.0 GB"),
    "painting": ("groundtruth/", "1ae32cdb4f98fe7ab5eb0a351768abfd", "3.7 GB"),
    "quickdraw": ("", "bdc1b6f09f277da1a263389efe0c7a66", "439 MB"),
    "real": ("", "dcc47055e8935767784b7162e7c7cca6", "5.6 GB"),
    "sketch": ("", "658d8009644040ff7ce30bb2e820850f", "2.5 GB"),
}
_LISTS = {  # md5 of the lists of the cleaned version, which are also offered by other names for the first one
    "clipart_train.txt": "b4349693a7f9c05c53955725c47ed6cb",
    "clipart_test.txt": "f5ddbcfd657a3acf9d0f7da10db22565",
    "infograph_train.txt": "379b50054f4ac2018dca4f89421b92d9",
    "infograph_test.txt": "779626b50869edffe8ea6941c3755c71",
    "painting_train.txt": "7db0e7ca73ad9982f6e1f7f3ef372c0a",
    "painting_test.txt": "232b35dc53f26d414686ae579e38d9b5",
    "quickdraw_train.txt": "b732ced3939ac8efdd8c0a889dca56cc",
    "quickdraw_test.txt": "c1a828fdfe216fb109f1c0083a252c6f",
    "real_train.txt": "8ebf02c2075fadd564705f0dc7cd6291",
    "real_test.txt": "6098816791c3ebed543c71ffa11b9054",
    "sketch_train.txt": "1233bd18aa9a8a200bf4cecf1c34ef3e",
    "sketch_test.txt": "d8a222e4672cfd585298aa14d02ea441",
}
DOMAINNET = tuple(_IMAGES)
DOMAINNET_IMAGES = tuple(
    Archive(f"{domain}.zip", f"{_SITE}/{folder}{domain}.zip", 0, md5, official=False, unpacked=domain, remark=size)
    for domain, (folder, md5, size) in _IMAGES.items()
)
DOMAINNET_LISTS = tuple(
    Archive(name, f"{_SITE}/domainnet/txt/{name}", 0, md5, official=False, remark="a list")
    for name, md5 in _LISTS.items()
)


def fedbn_table(
    lists: Source, images: Mapping[str, str], domains: Sequence[str], classes: Sequence[str], folder: str
) -> Table:
    """The table in FedBN's ``<domain>_{train,test}.pkl``, which are pickles of (paths, names of classes).

    FedBN's loader unpacks two columns and looks up the names (code). The columns may be lists, arrays or one array [2, N].
    `images` {domain: name of the archive with its images}; `folder` is a prefix of the paths that the names in those archives
    lack ("" if they have it too). Raises DataError.
    """
    files, labels, is_test, domain = [], [], [], []
    for number, site in enumerate(domains):
        for part in ("train", "test"):
            name = f"{site}_{part}.pkl"
            name = lists.base(name) + name
            pair = load_pickle(lists.read(name), f"{lists.path}: {name}")
            columns = (list, tuple, np.ndarray)
            whole = isinstance(pair, columns) and len(pair) == 2 and all(isinstance(part, columns) for part in pair)
            if not whole or len(pair[0]) != len(pair[1]):
                raise DataError(f"{lists.path}: expected {name} to hold as many paths as classes, found {pair!r:.80}")
            for path, text in zip(*map(list, pair), strict=True):
                if text not in classes or not isinstance(path, str):
                    raise DataError(
                        f"{lists.path}: expected paths and classes ({', '.join(classes)}) in {name}, "
                        f"found {path!r:.80} and {text!r:.40}"
                    )
                files.append((images[site], str(path).removeprefix(folder)))
                labels.append(classes.index(text))
                is_test.append(part == "test")
                domain.append(number)
    return Table(
        files,
        np.array(labels, dtype=np.int64),
        np.array(is_test, dtype=bool),
        tuple(classes),
        domain=np.array(domain, dtype=np.int64),
        domain_names=tuple(domains),
    )
