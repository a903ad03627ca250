"""The toolkit of dataset authors: archives, downloads, decoding, and caches of pixels.

A dataset plug-in imports from here, from `fedbench.data` and from nowhere else in fedbench. docs/add_a_dataset.md says what
to use when.
"""

from fedbench.base.files import check_regular, files_below, hidden, open_file
from fedbench.sources import decode, glyph_renderer, pixels
from fedbench.sources.archive import Source, open_source
from fedbench.sources.archive_dataset import ArchiveDataset
from fedbench.sources.cache import cached_arrays, describe_cache, verify_cache
from fedbench.sources.cifar import CifarDataset
from fedbench.sources.domains import DOMAINNET, DOMAINNET_IMAGES, DOMAINNET_LISTS, fedbn_table
from fedbench.sources.image_dataset import ImageDataset, Table
from fedbench.sources.safe_pickle import load_pickle

__all__ = [
    "DOMAINNET",
    "DOMAINNET_IMAGES",
    "DOMAINNET_LISTS",
    "ArchiveDataset",
    "CifarDataset",
    "ImageDataset",
    "Source",
    "Table",
    "cached_arrays",
    "check_regular",
    "decode",
    "describe_cache",
    "fedbn_table",
    "files_below",
    "glyph_renderer",
    "hidden",
    "load_pickle",
    "open_file",
    "open_source",
    "pixels",
    "verify_cache",
]
