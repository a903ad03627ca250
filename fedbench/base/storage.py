"""Files on a disk that may be full or away for a while: whole or absent when written, and told from a run's own faults."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 900.0  # how long a full disk or a file server that is away is waited for
LEAST_FREE_BYTES = 1 << 20

# What a file server, a network or a full disk says; everything else is a mistake somewhere.
AWAY = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBUSY, errno.EAGAIN, errno.ENOLCK,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN, errno.EREMOTE,
}  # fmt: skip


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which is whole or absent at any moment."""
    with aside(path) as file:
        file.write_bytes(data)


@contextmanager
def aside(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary neighbour of `path` to be written, which is moved there in the end; until then all is as it was.

    What was there is kept as `previous`, where that is given.
    """
    file = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield file
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        if previous is not None:
            with suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(file, path)
    finally:
        with suppress(OSError):
            file.unlink()


def is_away(error: BaseException, folder: Path) -> bool:
    """Whether the disk of `folder`, a run's, is full or not there, by itself or by what `error` was raised from.

    It may be back by now: a file that was missing beside the run's counts as well.
    """
    return _full(folder) or any(_number(one) in AWAY or _missing(one, folder.parent) for one in chain(error))


@contextmanager
def errors_at(path: Path) -> Iterator[None]:
    """Errors of the system that a library of another language meets at `path` become OSErrors that name it."""
    try:
        yield
    except Exception as error:
        if (number := _number(error)) is None:
            raise
        raise OSError(number, str(error), str(path)) from error


def _missing(error: BaseException, results: Path) -> bool:
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | os.PathLike):
        return False
    return Path(error.filename).is_relative_to(results)


def _number(error: BaseException) -> int | None:
    """The number of a fault of the system, also where a library of another language only writes it down."""
    if isinstance(error, OSError):
        return error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told.group(1)) if told else None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _full(folder: Path) -> bool:
    """Whether nothing can be written to `folder`: then an error of whatever name is of that."""
    try:
        return not folder.is_dir() or shutil.disk_usage(folder).free < LEAST_FREE_BYTES
    except OSError:
        return True


class Patience:
    """Waits that grow from a second to half a minute, `PATIENCE_SECONDS` in all since something last went well."""

    def __init__(self) -> None:
        self.restore()

    def restore(self) -> None:
        """Something went well."""
        self.since, self.wait = time.monotonic(), 1.0

    def __call__(self) -> bool:
        """Wait a little; False, at once, where patience has run out."""
        if time.monotonic() - self.since > PATIENCE_SECONDS:
            return False
        time.sleep(self.wait)
        self.wait = min(30.0, 2 * self.wait)
        return True


def waited_for(folder: Path) -> bool:
    """Whether `folder` exists and holds something, now or after a while: what a mount that is away leaves is empty."""
    patience = Patience()
    while True:
        with suppress(OSError):
            if any(folder.iterdir()):
                return True
        if not patience():
            return False
