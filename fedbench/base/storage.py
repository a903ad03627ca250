"""Files on a disk that may be full or unreachable for a while: writes are atomic, and disk faults are recognised."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 900.0  # how long a run waits for a full disk or an unreachable file server
LEAST_FREE_BYTES = 1 << 20

# Errors of a file server, a network or a full disk. Other errors are faults of the run.
AWAY = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBUSY, errno.EAGAIN, errno.ENOLCK,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN, errno.EREMOTE,
    # An expired ticket of a file system that asks for one (Linux only).
    *(getattr(errno, name) for name in ("EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED", "ENOKEY") if hasattr(errno, name)),
}  # fmt: skip
# Further errors of an expired ticket or an interrupted mount. Outside the results they are ordinary faults.
AWAY_IN_RESULTS = {errno.ENOENT, errno.EACCES, errno.EPERM}


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that the file is whole or absent at any moment."""
    with atomic_write(path) as file:
        file.write_bytes(data)


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary file beside `path`, and move it to `path` once the block has written it.

    `previous`: a name under which to keep the old file. The new file has the mode that the umask sets, whatever library
    wrote it.
    """
    file = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(file, "wb") as created:
            mode = os.fstat(created.fileno()).st_mode
        yield file
        with open(file, "rb") as written:
            if os.fstat(written.fileno()).st_mode != mode:
                file.chmod(mode & 0o7777)
            os.fsync(written.fileno())
        if previous is not None:
            with suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(file, path)
    finally:
        with suppress(OSError):
            file.unlink()


def remove_abandoned_writes(folder: Path, names: Iterable[str]) -> None:
    """Remove temporary files of `names` that killed processes left. Only the caller may write these files now."""
    # The second form is the name that safetensors gives its temporary files.
    abandoned = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\d+\.tmp|\.tmp\w{{6}}")
    for path in folder.iterdir():
        if abandoned.fullmatch(path.name):
            path.unlink(missing_ok=True)


def is_away(error: BaseException, folder: Path) -> bool:
    """Whether `error`, or an error it was raised from, means that the disk of the run `folder` is full or unreachable.

    The disk may be back by now, so a missing or forbidden file in the results folder counts as well.
    """
    return _is_full(folder) or any(
        number in AWAY or (number in AWAY_IN_RESULTS and _is_below(cause, folder.parent))
        for cause in causes(error)
        for number in [_error_number(cause)]
    )


@contextmanager
def errors_at(path: Path) -> Iterator[None]:
    """Turn system errors that a library in another language raises at `path` into OSErrors that name the path."""
    try:
        yield
    except Exception as error:
        if (number := _error_number(error)) is None:
            raise
        raise OSError(number, str(error), str(path)) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, the error it was raised from, and so on."""
    visited = set[int]()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_below(error: BaseException, results: Path) -> bool:
    """Whether an OSError names a file below `results`."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | os.PathLike):
        return False
    return Path(error.filename).is_relative_to(results)


def _error_number(error: BaseException) -> int | None:
    """The errno of a system error, even if a library in another language only writes it into its message."""
    if isinstance(error, OSError):
        return error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match.group(1)) if match else None


def _is_full(folder: Path) -> bool:
    """Whether `folder` has no space left. If so, any error counts as an error of the disk."""
    try:
        return not folder.is_dir() or shutil.disk_usage(folder).free < LEAST_FREE_BYTES
    except OSError:
        return True


class Patience:
    """Waits of growing length, from a second to half a minute, for up to `PATIENCE_SECONDS` after the last success."""

    def __init__(self) -> None:
        self.restore()

    def restore(self) -> None:
        """Start over, after a success."""
        self.since, self.wait = time.monotonic(), 1.0

    def __call__(self) -> bool:
        """Wait and return True, or return False at once if `PATIENCE_SECONDS` are over."""
        if time.monotonic() - self.since > PATIENCE_SECONDS:
            return False
        time.sleep(self.wait)
        self.wait = min(30.0, 2 * self.wait)
        return True


def appears(folder: Path) -> bool:
    """Whether `folder` exists and is not empty, now or within `PATIENCE_SECONDS`: an unmounted share leaves an empty folder."""
    patience = Patience()
    while True:
        with suppress(OSError):
            if any(folder.iterdir()):
                return True
        if not patience():
            return False
