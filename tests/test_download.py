"""Downloads from a real server on this machine: whole, in pieces, cut off, wrong, missing, moved."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench.data import Archive, DataError
from fedbench.sources import download as module
from fedbench.sources.archive_files import fetch, find_local
from fedbench.sources.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file; `cuts` are the lengths after which the next connections are dropped."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.ranges_asked: list[str] = []  # the Range header of each request

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that stops listening is part of the test

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, range_ = self.server, self.headers.get("Range", "")
        server.ranges_asked.append(range_)
        self.close_connection = True
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/busy" and len(server.ranges_asked) < 3:
            self.send_error(503)
            return
        if self.path not in ("/file", "/busy"):
            self.send_error(404)
            return
        start = 0
        if range_ and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(range_.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on this machine, while the block runs."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "PIECE_BYTES", 10_000)
    with serving() as made:
        yield made


def named(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("page", ["file", "moved", "busy"])
def test_a_file_comes_whole(page: str, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    download(f"{server.url}/{page}", path, len(CONTENT), MD5)
    assert path.read_bytes() == CONTENT
    assert named(path.parent) == ["file"]
    requests = len(server.ranges_asked)
    download(f"{server.url}/{page}", path, len(CONTENT), MD5)
    assert len(server.ranges_asked) == requests, "and is not fetched again"


def test_a_cut_download_resumes(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 50_000]
    download(f"{server.url}/file", tmp_path / "file", len(CONTENT), MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges_asked == ["", "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_any_number_of_cuts_is_no_failure_while_bytes_arrive(server: Server, tmp_path: Path) -> None:
    server.cuts = [20_000] * 8  # six in a row without a byte would be a failure
    download(f"{server.url}/file", tmp_path / "file", len(CONTENT), MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.ranges_asked) == 9


def test_a_later_command_resumes_a_download(server: Server, tmp_path: Path) -> None:
    server.cuts = [120_000] + [0] * 20
    with pytest.raises(
        DataError, match=r"could not be fetched .*120,000 bytes are in .*file.part, and the same command"
    ):
        download(f"{server.url}/file", tmp_path / "file", len(CONTENT), MD5)
    assert len(server.ranges_asked) == 1 + 6  # six in a row without a byte
    assert named(tmp_path) == ["file.part", "file.part.json"]
    server.cuts, server.ranges_asked = [], []
    download(f"{server.url}/file", tmp_path / "file", len(CONTENT), MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges_asked == ["bytes=120000-"]


@pytest.mark.parametrize("how", ["another version", "no ranges"])
def test_pieces_of_two_versions_are_never_mixed(how: str, server: Server, tmp_path: Path) -> None:
    server.cuts = [120_000] + [0] * 20
    with pytest.raises(DataError):
        download(f"{server.url}/file", tmp_path / "file")
    server.cuts = []
    if how == "another version":
        server.content, server.etag = CONTENT[::-1], '"two"'
    else:
        server.ranges = False
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"expected a file with md5 {'0' * 32}, found {MD5}"):
        download(f"{server.url}/file", tmp_path / "file", len(CONTENT), "0" * 32)
    assert "file" not in named(tmp_path)
    assert "file.part" not in named(tmp_path)


def test_a_wrong_size_is_refused_before_it_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 5 bytes, but the server has 300,000"):
        download(f"{server.url}/file", tmp_path / "file", 5)
    assert "file" not in named(tmp_path)


def test_a_missing_page_and_a_dead_server_are_reported(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/nothing: the server says 404 Not Found"):
        download(f"{server.url}/nothing", tmp_path / "file")
    with pytest.raises(DataError, match=r"could not be fetched .*refused"):
        download("http://127.0.0.1:9/file", tmp_path / "file")
    assert named(tmp_path) == []


def test_six_attempts_without_progress_are_made_with_pauses_that_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    limits: list[float] = []

    def silent(request: Any, timeout: float) -> None:
        limits.append(timeout)
        raise TimeoutError("no answer")

    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module.urllib.request, "urlopen", silent)
    with pytest.raises(DataError, match=r"could not be fetched .*no answer"):
        download("http://127.0.0.1:9/file", tmp_path / "file")
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0]  # seconds
    assert limits == [60.0] * 6


def test_a_full_disk_is_reported_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"300,000 more bytes are needed for file.part, 1,000 are free"):
        download(f"{server.url}/file", tmp_path / "file")


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=download, args=(f"{server.url}/file", tmp_path / "file")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.ranges_asked) == 1


def test_a_page_in_place_of_an_archive_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.content = b"<!DOCTYPE html><html>please log in</html>"
    with pytest.raises(DataError, match=r"expected a zip or tar archive, found 41 bytes that begin with b'<!DOCTYPE"):
        download(f"{server.url}/file", tmp_path / "x.tar.gz")
    assert not [name for name in named(tmp_path) if not name.endswith(".json")]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, ", as published)"),
        ({"md5": ""}, ", no published checksum)"),
        ({"official": False}, ", as third parties report)"),
        ({"official": False, "md5": "0" * 32}, f", not {'0' * 32} as third parties report)"),
        ({"official": False, "size": 7}, ", as third parties report)"),
        ({"md5": "0" * 32}, None),
        ({"size": 7}, None),
    ],
)
def test_only_what_the_makers_published_refuses_a_download(
    server: Server, tmp_path: Path, changes: dict[str, Any], verdict: str | None
) -> None:
    facts = {"size": len(CONTENT), "md5": MD5, "official": True, **changes}
    archive = Archive("file.bin", url=f"{server.url}/file", **facts)
    path = tmp_path / "file.bin"
    if verdict is None:
        with pytest.raises(
            DataError, match=r"could not be downloaded .*expected .*; fetch .* or name it: prepare --from"
        ):
            fetch(archive, path, False, "prepare", "")
        assert not path.exists()
    else:
        assert fetch(archive, path, False, "prepare", "").description().endswith(verdict)
        assert path.read_bytes() == CONTENT


def test_a_users_archives_are_found_in_a_folder_and_in_those_directly_below_it(tmp_path: Path) -> None:
    needed = [Archive("a.zip"), Archive("b.zip", unpacked="b"), Archive("c.zip"), Archive("d.zip")]
    for name in ("a.zip", "one/b.zip", "two/c.zip", "two/deep/d.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "two" / "b").mkdir()
    found = find_local(needed, tmp_path)
    assert {name: (there.path, there.folder) for name, there in found.items()} == {
        "a.zip": (tmp_path / "a.zip", ""),
        "b.zip": (tmp_path / "one" / "b.zip", ""),
        "c.zip": (tmp_path / "two" / "c.zip", ""),
    }
    assert find_local(needed[1:2], tmp_path / "two")["b.zip"].folder == "b"
    assert find_local(needed[:1], tmp_path / "two" / "c.zip")["a.zip"].path == tmp_path / "two" / "c.zip"
    with pytest.raises(DataError, match=r"expected b\.zip or c\.zip or b/, found none of them"):
        find_local(needed[1:3], tmp_path / "two" / "deep")
    with pytest.raises(DataError, match=r"expected a\.zip, found nothing there"):
        find_local(needed[:1], tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(DataError, match=r"pipe\.zip: expected a file, found a named pipe"):
        find_local(needed[:1], tmp_path / "pipe.zip")
