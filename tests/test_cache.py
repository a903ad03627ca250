"""A cache is made once, by the first process that needs it, and is whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedbench.base import checksums, lease, lock, processes
from fedbench.data import DataError, Samples
from fedbench.sources import cache
from fedbench.sources.cache import cached_arrays
from fedbench.vit.features import data_hash


def left(folder: Path) -> list[str]:
    """What is in a folder, but for locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_cache_builds_once_and_maps(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        np.save(folder / "x.npy", np.arange(6).reshape(2, 3))
        np.save(folder / "names.npy", np.array(["a", "bc"]))

    for _ in range(3):
        made = cached_arrays(tmp_path / "deep" / "cache", build)
        assert sorted(made) == ["names", "x"]
        assert (made["x"] == np.arange(6).reshape(2, 3)).all()
        assert list(made["names"]) == ["a", "bc"]
        assert isinstance(made["x"], np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            made["x"][0, 0] = 1
    assert len(built) == 1
    assert not built[0].exists()


def damage(folder: Path) -> dict[str, Callable[[], Any]]:
    array, contents = folder / "x.npy", folder / cache.CONTENTS
    return {
        "cut off": lambda: array.write_bytes(array.read_bytes()[:-8]),
        "empty": lambda: array.write_bytes(b""),
        "missing": array.unlink,
        "no contents": contents.unlink,
        "half the contents": lambda: contents.write_text(contents.read_text()[:8]),
        "other contents": lambda: contents.write_text("[1]"),
        "another format": lambda: contents.write_text(contents.read_text().replace('"format": 2', '"format": 1')),
        "the first format": lambda: contents.write_text('{"x": ["<i8", [1000]]}'),
        "another shape": lambda: np.save(array, np.zeros(3)),
        "objects": lambda: np.save(array, np.array([None]), allow_pickle=True),
        "a stranger's file": lambda: (array.unlink(), (folder / "notes.txt").write_text("x")),
    }


@pytest.mark.parametrize("kind", sorted(damage(Path())))
def test_a_damaged_cache_is_made_again(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build = lambda aside: np.save(aside / "x.npy", np.arange(1000))  # noqa: E731
    cached_arrays(folder, build)
    damage(folder)[kind]()
    assert (cached_arrays(folder, build)["x"] == np.arange(1000)).all()
    assert left(tmp_path) == ["cache"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        np.save(folder / "x.npy", np.arange(6))
        raise DataError("the third image is broken")

    with pytest.raises(DataError, match="third image"):
        cached_arrays(tmp_path / "cache", build)
    assert left(tmp_path) == []
    (tmp_path / ".cache.0123.tmp").mkdir()  # what a killed job leaves
    np.save(tmp_path / ".cache.0123.tmp" / "x.npy", np.zeros(2))
    made = cached_arrays(tmp_path / "cache", lambda aside: np.save(aside / "x.npy", np.arange(6)))
    assert (made["x"] == np.arange(6)).all()


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="this cache cannot be written"):
        cached_arrays(tmp_path / "file" / "cache", lambda aside: None)


def job(folder: Path, name: str, without: str, ready: Any) -> None:
    """A process that wants the cache and takes its time to build it."""

    def refused(*_: Any) -> None:
        raise OSError("this file system has none")

    if "locks" in without:
        lock.fcntl.flock = refused  # type: ignore[assignment]
    if "links" in without:
        os.link = refused  # type: ignore[assignment]
    if "claims" in without:
        lock.acquire = lambda folder: contextlib.nullcontext(SimpleNamespace(remove_claims=lambda: None))  # type: ignore[assignment,return-value]

    def build(aside: Path) -> None:
        (folder.parent / f"built-{name}").touch()
        np.save(aside / "x.npy", np.arange(100_000))
        time.sleep(0.5)

    ready.wait()
    array = cached_arrays(folder, build)["x"]
    ready.wait()  # the other may be about to put its own in place
    if not (array == np.arange(100_000)).all():
        raise ValueError("half an array")


@pytest.mark.parametrize("without", ["", "locks", "locks and links", "claims", "locks and claims"])
def test_processes_build_at_once(without: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fork = multiprocessing.get_context("fork")  # importing everything anew would take seconds
    ready = fork.Barrier(4, timeout=30)
    jobs = [fork.Process(target=job, args=(folder, name, without, ready)) for name in "abcd"]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
    assert [each.exitcode for each in jobs] == [0] * 4
    built = [name for name in left(tmp_path) if name.startswith("built-")]
    assert left(tmp_path) == [*built, "cache"], "nothing else is left"
    if without == "locks and claims":
        assert len(built) == 4, "without any lock all work, and all are right"
    else:
        assert len(built) == 1, "a lock of either kind saves the others' work"


def stranger(place: Path) -> Path:
    """A claim on `place` by a process of another host."""
    place.mkdir(parents=True)
    (place / "claim.1").write_text(json.dumps(asdict(dataclasses.replace(processes.process(), host="elsewhere"))))
    return place / "claim.1"


def test_a_host_that_fell_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    stranger(tmp_path / ".cache.lock")
    made = cached_arrays(tmp_path / "cache", lambda aside: np.save(aside / "x.npy", np.arange(6)))
    assert (made["x"] == np.arange(6)).all()
    assert not list((tmp_path / ".cache.lock").glob("claim.*"))


def test_a_host_that_works_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    theirs = stranger(tmp_path / ".cache.lock")

    def elsewhere() -> None:
        for _ in range(30):  # its heart beats, and at last the cache is there
            os.utime(theirs)
            time.sleep(0.02)
        monkeypatch.setattr(cache, "one_at_a_time", lambda *_: contextlib.nullcontext(True))
        cached_arrays(tmp_path / "cache", lambda aside: np.save(aside / "x.npy", np.arange(6)))
        theirs.unlink()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    made = cached_arrays(tmp_path / "cache", lambda aside: pytest.fail("built here too"))
    thread.join()
    assert (made["x"] == np.arange(6)).all()


def test_what_an_interruption_left_is_gone_on_with(tmp_path: Path) -> None:
    def build(aside: Path) -> None:
        there = aside / "half.bin"
        if not there.exists():
            there.write_text("half")
            raise KeyboardInterrupt
        np.save(aside / "x.npy", np.arange(6))

    with pytest.raises(KeyboardInterrupt):
        cached_arrays(tmp_path / "cache", build, resumes=True)
    assert cached_arrays(tmp_path / "cache", build, resumes=True)["x"].shape == (6,)
    assert left(tmp_path) == ["cache"]
    assert left(tmp_path / "cache") == ["contents.json", "x.npy"]


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cached_arrays(folder, lambda aside: np.save(aside / "x.npy", np.arange(6)))
    assert cache.verify_cache(folder) == []
    content = bytearray((folder / "x.npy").read_bytes())
    content[-3] ^= 1
    (folder / "x.npy").write_bytes(content)
    (line,) = cache.verify_cache(folder)
    assert "x.npy: expected sha256" in line
    (folder / "x.npy").unlink()
    assert cache.verify_cache(folder) == [f"{folder}: expected a cache, found none or a part of one"]


def test_a_cache_with_changed_bytes_is_computed_again_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, built = tmp_path / "cache", []

    def build(aside: Path) -> None:
        built.append(1)
        np.save(aside / "x.npy", np.arange(6))

    cached_arrays(folder, build)
    content = bytearray((folder / "x.npy").read_bytes())
    for place in (-3, -9, -17, -25):
        content[place] ^= 1
    (folder / "x.npy").write_bytes(content)
    assert cached_arrays(folder, build)["x"].tolist() == list(range(6))
    assert len(built) == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{folder / 'x.npy'}: expected sha256 ")
    assert line.endswith("; the cache is computed again")


def test_a_file_is_read_for_its_checksum_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = lambda aside: np.save(aside / "x.npy", np.arange(6))  # noqa: E731
    reads: list[str] = []
    real = checksums._digest
    monkeypatch.setattr(checksums, "_digest", lambda *a: (reads.append(a[1]), real(*a))[1])
    for _ in range(3):
        cached_arrays(tmp_path / "cache", build)
    assert reads == ["x.npy"]
    monkeypatch.setattr(checksums, "_known", {})  # another process
    cached_arrays(tmp_path / "cache", build)
    assert reads == ["x.npy"] * 2
    monkeypatch.setattr(checksums, "_known", {})
    monkeypatch.setattr(cache, "TRUSTED_BYTES", 8)
    cached_arrays(tmp_path / "cache", build)
    assert reads == ["x.npy"] * 2, "large and untouched"
    assert cache.verify_cache(tmp_path / "cache") == []
    assert reads == ["x.npy"] * 3, "verify reads all"
    (tmp_path / "cache" / "x.npy").touch()
    cached_arrays(tmp_path / "cache", build)
    assert reads == ["x.npy"] * 4, "touched"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o027])
def test_files_get_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        cached_arrays(tmp_path / "cache", lambda aside: np.save(aside / "x.npy", np.arange(6)))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [*tmp_path.rglob("cache"), *tmp_path.rglob("cache/*")]}
    assert modes == {"cache": 0o777 & ~umask, "x.npy": 0o666 & ~umask, "contents.json": 0o666 & ~umask}


def test_threads_see_whole_caches(tmp_path: Path) -> None:
    """Readers, builders and a thread that damages the cache work at the same time: all of them get whole arrays only."""
    folder, wrong, stop = tmp_path / "cache", [], threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                made = cached_arrays(folder, lambda aside: np.save(aside / "x.npy", np.arange(500)))
                if not (made["x"] == np.arange(500)).all():
                    wrong.append("half an array")
            except DataError as error:
                wrong.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        time.sleep(0.02)
        (folder / cache.CONTENTS).unlink(missing_ok=True)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("count", [3000, 100_000, 102_400])
def test_the_hash_of_data_sees_labels_split_and_every_image_or_4096_evenly_spaced_ones(count: int) -> None:
    images = np.zeros((count, 1, 1, 3), dtype=np.uint8)
    labels, is_test = np.arange(count) % 7, np.arange(count) % 2 == 0

    def hash_of(**change: Any) -> str:
        return data_hash(Samples(**({"images": images, "labels": labels, "is_test": is_test} | change)))

    first = hash_of()
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert hash_of(labels=(np.arange(count) + 1) % 7) != first
    assert hash_of(is_test=~is_test) != first
    assert hash_of(images=np.zeros((count, 1, 2, 3), dtype=np.uint8)) != first
    step = 25 if count > 100_000 else 1
    for at in (0, 1023 * step, 1024 * step, count - step, count - 1):
        images[at] = 1
        assert (hash_of() != first) == (at % step == 0)
        images[at] = 0
    assert hash_of() == first
