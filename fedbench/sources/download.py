"""Downloads a file over HTTP: resumes, shows progress, and renames the file to its final name after checking it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedbench.base.checksums import checksum
from fedbench.base.lock import one_at_a_time
from fedbench.base.progress import progress
from fedbench.base.storage import write_atomically
from fedbench.data import DataError
from fedbench.sources.archive import SUFFIXES, beginning, is_archive

PIECE_BYTES = 1 << 20
ATTEMPTS = 6  # most attempts in a row without progress
PAUSE_SECONDS = 1.0  # doubled after each attempt without progress
TIMEOUT_SECONDS = 60.0
AGENT = "fedbench"


def download(url: str, path: Path, size: int = 0, md5: str = "") -> None:
    """Download `url` to `path`. The file must have `size` bytes and the checksum `md5` (0 and "": not known).

    A partial download is kept in ``<name>.part``, even when the process is killed. The next attempt resumes it if the server
    says that the file is unchanged. A file with the name of an archive must be an archive. Raises DataError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path, path.exists) as is_ours:
            if is_ours:
                _Transfer(url, path, size).run()
                _check(path.with_name(path.name + ".part"), url, md5)
                os.replace(path.with_name(path.name + ".part"), path)
                path.with_name(path.name + ".part.json").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{url}: cannot be written to {path} ({error})") from error


def _check(part: Path, url: str, md5: str) -> None:
    """Raises DataError, and removes the file, if it is not the requested file."""
    name = part.name.removesuffix(".part")
    if md5 and (digest := checksum(part, "md5")) != md5:
        problem = f"expected a file with md5 {md5}, found {digest}"
    elif name.endswith(SUFFIXES) and not is_archive(part):  # many servers answer with a page and the code 200
        problem = f"expected a zip or tar archive, found {beginning(part)}"
    else:
        return
    part.unlink()
    raise DataError(f"{url}: {problem}; the download was deleted")


class _Transfer:
    """One download, over as many connections as it needs."""

    def __init__(self, url: str, path: Path, size: int) -> None:
        self.url, self.size = url, size
        self.part = path.with_name(path.name + ".part")
        self.facts = path.with_name(path.name + ".part.json")  # the version of the file to which the part belongs

    @property
    def have(self) -> int:
        """Bytes downloaded so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Download until the file is whole. Raises DataError."""
        failures = 0
        while True:
            before = self.have
            try:
                if self._connection():
                    return
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # the part is longer than the file, which has changed
                    self._restart()
                    reason = str(error)
                elif error.code in (408, 425, 429) or error.code >= 500:
                    reason = str(error)
                else:
                    raise DataError(f"{self.url}: the server says {error.code} {error.reason}") from error
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                TimeoutError,
                ConnectionError,
                ssl.SSLError,
            ) as error:
                reason = f"{type(error).__name__}: {error}"
            failures = failures + 1 if self.have <= before else 0
            if failures >= ATTEMPTS:
                raise DataError(
                    f"{self.url}: could not be fetched ({reason}); {self.have:,} bytes are in {self.part}, and the same "
                    f"command resumes from there"
                )
            time.sleep(PAUSE_SECONDS * 2**failures)

    def _restart(self) -> None:
        self.part.unlink(missing_ok=True)

    def _connection(self) -> bool:
        """Download over one connection. Returns whether the file is whole."""
        have, headers = self.have, {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        known = self._known() if have else {}
        if have and known.get("validator"):
            headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
        if have and known.get("total") == have:
            return True
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - urls stand in plug-ins
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if not goes_on:
                have = 0
                self._restart()
            length = int(answer.headers.get("Content-Length") or 0)
            total = have + length if length else 0
            if self.size and total and total != self.size:
                raise DataError(
                    f"{self.url}: expected {self.size:,} bytes, but the server has {total:,} "
                    f"({answer.headers.get('Content-Type', 'of no type')}): it is another file"
                )
            free = shutil.disk_usage(self.part.parent).free
            if length > free:
                raise DataError(
                    f"{self.part.parent}: {length:,} more bytes are needed for {self.part.name}, {free:,} are free"
                )
            etag = answer.headers.get("ETag", "")
            validator = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
            write_atomically(self.facts, json.dumps({"url": self.url, "validator": validator, "total": total}).encode())
            with (
                open(self.part, "ab") as file,
                progress(self.part.stem, total, have, "bytes") as advance,
            ):
                try:
                    while piece := answer.read(PIECE_BYTES):
                        file.write(piece)
                        advance(len(piece))
                finally:
                    file.flush()
                    with suppress(OSError):
                        os.fsync(file.fileno())
        return self.have == (total or self.size or self.have)

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self.facts.read_text())
            return known if known["url"] == self.url else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}
