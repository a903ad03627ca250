"""Fetches a file over HTTP: goes on where it stopped, says how far it is, and gives it its name only when it is right."""

from __future__ import annotations

import hashlib
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

from fedbench.base.lock import one_at_a_time
from fedbench.base.progress import progress
from fedbench.base.storage import write_aside
from fedbench.data import DataError

PIECE = 1 << 20
ATTEMPTS = 6  # in a row without a byte gained
PAUSE_SECONDS = 1.0  # doubled after each attempt that gained nothing
TIMEOUT_SECONDS = 60.0
AGENT = "fedbench"


def download(url: str, path: Path, size: int = 0, md5: str = "") -> None:
    """Fetch `url` to `path`. `size` in bytes and `md5` are what the file must have (0 and "": not known).

    What has come so far waits in ``<name>.part`` for the next attempt, also after the process was killed, and is only
    gone on with if the server says that the file is still the same. Raises DataError, with what went wrong.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path, path.exists) as mine:
            if mine:
                _Transfer(url, path, size).run()
                _check(path.with_name(path.name + ".part"), url, md5)
                os.replace(path.with_name(path.name + ".part"), path)
                path.with_name(path.name + ".part.json").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{url}: cannot be written to {path} ({error})") from error


_md5: dict[tuple[int, ...], str] = {}  # a file's identity, as far as a file system tells: read 186 GB once


def md5_of(path: Path) -> str:
    """The MD5 of a file, with a bar: official checksums are given so; it guards against accidents, not attacks."""
    status = path.stat()
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if identity not in _md5:
        _md5[identity] = _read_md5(path)
    return _md5[identity]


def _read_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, progress(f"checksum of {path.name}", path.stat().st_size, unit="bytes") as advance:
        while piece := file.read(PIECE):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def _check(part: Path, url: str, md5: str) -> None:
    if md5 and (found := md5_of(part)) != md5:
        part.unlink()
        raise DataError(f"{url}: expected a file with md5 {md5}, found {found}; what came was thrown away")


class _Transfer:
    """One download, over as many connections as it takes."""

    def __init__(self, url: str, path: Path, size: int) -> None:
        self.url, self.size = url, size
        self.part = path.with_name(path.name + ".part")
        self.facts = path.with_name(path.name + ".part.json")  # which file of the server the part belongs to

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        failures = 0
        while True:
            before = self.have
            try:
                if self._connection():
                    return
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # the part is longer than the file: it is another one now
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
                    f"command goes on from there"
                )
            time.sleep(PAUSE_SECONDS * 2**failures)

    def _restart(self) -> None:
        self.part.unlink(missing_ok=True)

    def _connection(self) -> bool:
        """Fetch over one connection; whether the file is whole."""
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
            write_aside(self.facts, json.dumps({"url": self.url, "validator": validator, "total": total}).encode())
            with (
                open(self.part, "ab") as file,
                progress(self.part.stem, total, have, "bytes") as advance,
            ):
                try:
                    while piece := answer.read(PIECE):
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
