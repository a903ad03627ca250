"""The toolkit of dataset authors: archives, downloads, decoding, and caches of pixels.

A dataset plug-in imports from here, from `fedbench.data` and from nowhere else in fedbench.
"""

from fedbench.sources import decode, glyph_renderer, pixels
from fedbench.sources.archive import Source, open_source
from fedbench.sources.cache import cached_arrays
from fedbench.sources.cifar import CifarDataset
from fedbench.sources.domains import DOMAINNET, DOMAINNET_IMAGES, DOMAINNET_LISTS, fedbn_table
from fedbench.sources.prepared import ArchiveDataset, ImageDataset, Table

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
    "decode",
    "fedbn_table",
    "glyph_renderer",
    "open_source",
    "pixels",
]
