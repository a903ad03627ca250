"""What is publicly known of a data set: how large it should be, and the files that it comes in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """The published size of a data set; 0: it has no such column, or nobody says."""

    images: int
    classes: int
    domains: int = 0
    users: int = 0
    page: str = ""  # where people read about it and find its files


@dataclass(frozen=True)
class Archive:
    """A file as its makers offer it: a zip or tar archive, or a single list.

    ``url`` is empty where a person has to fetch it by hand. ``size`` [bytes] and ``md5`` are 0 and empty where nobody says;
    with ``official`` False they were reported by third parties, so that another value is told and not refused.
    ``unpacked`` is the folder that unpacking makes: if it is there, it serves in the archive's place.
    """

    name: str
    url: str = ""
    size: int = 0
    md5: str = ""
    official: bool = True
    unpacked: str = ""
    told: str = ""  # the size in words where the makers give it only so, and what else should be known
