"""Facts about the published files of datasets, written out once more from where they were published.

A download is checked against them: names, sizes and checksums of archives, and the numbers of images, classes, domains, users.
Checksums are those of the pages of CIFAR and iNaturalist 2017, of torchvision (Stanford Cars), and of public loaders of Tiny
ImageNet and DomainNet.
"""

from __future__ import annotations

from fedbench.plan.plugins import plugins

DATASETS = plugins().classes["dataset"]
VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
# (name, address, bytes, MD5, whether the makers published these, the folder that unpacking makes)
ARCHIVES = {
    "cifar10": [
        (
            "cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            170498071,
            "c58f30108f718f92721af3b95e74349a",
            True,
            "cifar-10-batches-py",
        ),
    ],
    "cifar100": [
        (
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            169001437,
            "eb9058c3a382ffc7106e4002c42a8d85",
            True,
            "cifar-100-python",
        ),
    ],
    "inaturalist": [
        (
            "train_val_images.tar.gz",
            "https://ml-inat-competition-datasets.s3.amazonaws.com/2017/train_val_images.tar.gz",
            0,
            "7c784ea5e424efaec655bd392f87301f",
            True,
            "train_val_images",
        ),
        (
            "inaturalist-user-120k.zip",
            "http://storage.googleapis.com/gresearch/federated-vision-datasets/inaturalist-user-120k.zip",
            0,
            "",
            True,
            "inaturalist-user-120k",
        ),
        (
            "inaturalist-geo.zip",
            "http://storage.googleapis.com/gresearch/federated-vision-datasets/inaturalist-geo.zip",
            0,
            "",
            True,
            "inaturalist-geo",
        ),
    ],
    "office_caltech10": [
        ("office_caltech_10_dataset.zip", "", 0, "", True, "office_caltech_10"),
    ],
    "pacs": [
        ("PACS.zip", "", 0, "", True, "PACS"),
    ],
    "stanford_cars": [
        ("cars_train.tgz", "", 0, "065e5b463ae28d29e77c1b4b166cfe61", False, "cars_train"),
        ("cars_test.tgz", "", 0, "4ce7ebf6a94d07f1952d94dd34c4d501", False, "cars_test"),
        ("car_devkit.tgz", "", 0, "c3b158d763b6e2245038c8ad08e45376", False, "devkit"),
        ("cars_test_annos_withlabels.mat", "", 0, "b0a2b23655a3edd16d84508592a98d10", False, ""),
    ],
    "tiny_imagenet": [
        (
            "tiny-imagenet-200.zip",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            248100043,
            "90528d7ca1a48142e341f4ef8d21d0de",
            False,
            "tiny-imagenet-200",
        ),
    ],
}
# (the folder of a domain's archive, its MD5, those of the lists of training and test images)
DOMAINNET = {
    "clipart": (
        "groundtruth/",
        "cd0d8f2d77a4e181449b78ed62bccf1e",
        "b4349693a7f9c05c53955725c47ed6cb",
        "f5ddbcfd657a3acf9d0f7da10db22565",
    ),
    "infograph": (
        "",
        "720380b86f9e6ab4805bb38b6bd135f8",
        "379b50054f4ac2018dca4f89421b92d9",
        "779626b50869edffe8ea6941c3755c71",
    ),
    "painting": (
        "groundtruth/",
        "1ae32cdb4f98fe7ab5eb0a351768abfd",
        "7db0e7ca73ad9982f6e1f7f3ef372c0a",
        "232b35dc53f26d414686ae579e38d9b5",
    ),
    "quickdraw": (
        "",
        "bdc1b6f09f277da1a263389efe0c7a66",
        "b732ced3939ac8efdd8c0a889dca56cc",
        "c1a828fdfe216fb109f1c0083a252c6f",
    ),
    "real": (
        "",
        "dcc47055e8935767784b7162e7c7cca6",
        "8ebf02c2075fadd564705f0dc7cd6291",
        "6098816791c3ebed543c71ffa11b9054",
    ),
    "sketch": (
        "",
        "658d8009644040ff7ce30bb2e820850f",
        "1233bd18aa9a8a200bf4cecf1c34ef3e",
        "d8a222e4672cfd585298aa14d02ea441",
    ),
}
# (images, classes, domains, users); images of 0: as many as the user draws or has
FACTS = {
    "cifar10": (60_000, 10, 0, 0),
    "cifar100": (60_000, 100, 0, 0),
    "digits": (1_797, 10, 0, 0),
    "domainnet": (586_575, 345, 6, 0),
    "domainnet10": (0, 10, 6, 0),
    "glyphs": (0, 100, 6, 0),
    "inaturalist": (155_941, 1_203, 0, 9_275),
    "office_caltech10": (2_533, 10, 4, 0),
    "pacs": (9_991, 7, 4, 0),
    "stanford_cars": (16_185, 196, 0, 0),
    "tiny_imagenet": (110_000, 200, 0, 0),
}


def archives(name: str) -> list[tuple[object, ...]]:
    return [(a.name, a.url, a.size, a.md5, a.official, a.unpacked) for a in DATASETS[name].archives]


def domain_archives() -> list[tuple[object, ...]]:
    return [
        (f"{domain}.zip", f"{VISDA}{folder}{domain}.zip", 0, md5, False, domain)
        for domain, (folder, md5, *_) in DOMAINNET.items()
    ]


def domain_lists() -> list[tuple[object, ...]]:
    return [
        (f"{domain}_{part}.txt", f"{VISDA}domainnet/txt/{domain}_{part}.txt", 0, md5, False, "")
        for domain, (_, _, *lists) in DOMAINNET.items()
        for part, md5 in zip(("train", "test"), lists, strict=True)
    ]


def test_archives_are_those_that_were_published() -> None:
    with_archives = {name for name, cls in DATASETS.items() if getattr(cls, "archives", ())}
    assert with_archives == {*ARCHIVES, "domainnet", "domainnet10"}
    for name, expected in ARCHIVES.items():
        assert archives(name) == expected, name
    assert archives("domainnet") == [*domain_archives(), *domain_lists()]
    lists = ("domainnet_dataset.zip", "", 0, "", True, "DomainNet")
    assert archives("domainnet10") == [lists, *domain_archives()]


def test_datasets_are_as_large_as_was_published() -> None:
    sized = {name: cls.facts for name, cls in DATASETS.items() if cls.facts is not None}
    assert {name: (f.images, f.classes, f.domains, f.users) for name, f in sized.items()} == FACTS
