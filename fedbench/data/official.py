"""Published facts about a dataset: its size and its files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """The published size of a dataset; 0 for columns that it lacks or whose size is not published."""

    images: int
    classes: int
    domains: int = 0
    users: int = 0
    page: str = ""  # the web page that describes the dataset and offers its files


@dataclass(frozen=True)
class Archive:
    """A file as published: a zip or tar archive, or a single list.

    ``url`` is empty if the user has to download the file by hand. ``size`` [bytes] and ``md5`` are 0 and empty if they are not
    published. With ``official=False``, third parties reported them, so a file with other values is recorded and not refused.
    ``unpacked`` is the folder that unpacking makes, which can replace the archive.
    """

    name: str
    url: str = ""
    size: int = 0
    md5: str = ""
    official: bool = True
    unpacked: str = ""
    remark: str = ""  # the size in words if only that is published, or the content of the file
