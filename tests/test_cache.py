"""A cache is made once, by whoever comes first, and is whole or not there."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench import cache
from fedbench.cache import cached_arrays
from fedbench.data import DataError


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


def job(folder: Path, name: str, locked: bool, ready: Any) -> None:
    """A process that wants the cache and takes its time to build it."""
    if not locked:

        def no_lock(*_: Any) -> None:
            raise OSError("this file system has no locks")

        cache.fcntl.flock = no_lock  # type: ignore[assignment]

    def build(aside: Path) -> None:
        (folder.parent / f"built-{name}").touch()
        np.save(aside / "x.npy", np.arange(100_000))
        time.sleep(0.5)

    ready.wait()
    array = cached_arrays(folder, build)["x"]
    ready.wait()  # the other may be about to put its own in place
    if not (array == np.arange(100_000)).all():
        raise ValueError("half an array")


@pytest.mark.parametrize("locked", [True, False])
def test_two_processes_build_at_once(locked: bool, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fork = multiprocessing.get_context("fork")  # importing everything anew would take seconds
    ready = fork.Barrier(2)
    jobs = [fork.Process(target=job, args=(folder, name, locked, ready)) for name in "ab"]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
    assert [each.exitcode for each in jobs] == [0, 0]
    built = ["built-a", "built-b"]
    if locked:
        assert left(tmp_path) in (["built-a", "cache"], ["built-b", "cache"]), "the lock saves the second's work"
    else:
        assert left(tmp_path) == [*built, "cache"], "without locks both work, and both are right"


def test_threads_see_whole_caches(tmp_path: Path) -> None:
    """Readers, builders and somebody who breaks the cache, all at once: everybody only ever gets whole arrays."""
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
