"""The data contract: the content of datasets, partitioners and their splits, and the batches that clients train on."""

from fedbench.base import rng
from fedbench.base.options import option
from fedbench.base.planned_task import PlannedTask
from fedbench.data import published
from fedbench.data.batches import Batches, batches
from fedbench.data.official import Archive, Facts
from fedbench.data.partition import Dealt, Partitioner, SplitSource, cut, dirichlet_shares, level_owners, too_few
from fedbench.data.samples import Bools, DataError, Dataset, Extent, Ints, Samples
from fedbench.data.split import Parts, Split, split

__all__ = [
    "Archive",
    "Batches",
    "Bools",
    "DataError",
    "Dataset",
    "Dealt",
    "Extent",
    "Facts",
    "Ints",
    "Partitioner",
    "Parts",
    "PlannedTask",
    "Samples",
    "Split",
    "SplitSource",
    "batches",
    "cut",
    "dirichlet_shares",
    "level_owners",
    "option",
    "published",
    "rng",
    "split",
    "too_few",
]
