"""Preparing a data set: the command line, downloads, interruptions, full disks, many jobs at once."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from archives import DATASETS, cifar_archive, level, official, publish, tiny_imagenet
from test_cache import left
from test_download import Server, serving
from test_imagefolder import image_tree
from workplace import files

from benchmarks.prepare import memory
from fedbench.base import lock
from fedbench.cli import sweep
from fedbench.cli.data import main
from fedbench.data import DataError
from fedbench.run import cost
from fedbench.sources import download, pixels

fork = multiprocessing.get_context("fork")  # importing everything anew would take seconds


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small Tiny ImageNet of ten images."""
    official("tiny_imagenet", tmp_path / "data", monkeypatch)
    return tmp_path / "data"


# ---------------------------------------------------------------- the command line


def test_list_and_info(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in DATASETS)
    assert "155,941 images, 1,203 classes, 9,275 users" in printed
    for name in DATASETS:
        if name not in ("npz", "imagefolder"):  # those are nothing without a path
            assert main(["info", name, "--root", str(tiny)]) == 0
    printed = capsys.readouterr().out
    for said in (
        "citation",
        "licence",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "169,001,437 bytes",
    ):
        assert said in printed


def test_prepare_and_verify(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tiny_imagenet", "--root", str(tiny), "--image-size", "16"]
    assert main(["verify", *words]) == 1, "there is nothing yet"
    assert main(["prepare", *words]) == 0
    assert main(["verify", *words]) == 0
    printed = capsys.readouterr().out
    assert "tiny_imagenet: 10 images of 16 x 16 pixels (6 training, 4 test), 200 classes" in printed
    assert "as third parties report" in printed
    (archive,) = (tiny / "tiny_imagenet").glob("*.zip")
    archive.unlink()
    assert main(["prepare", *words]) == 0, "the cache is enough"
    (images,) = (tiny / "cache").rglob("images.npy")
    with open(images, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    assert main(["verify", *words]) == 1
    assert "images.npy: expected sha256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["prepare", "tiny_imagnet"], 2, "did you mean 'tiny_imagenet'? legal: cifar10, "),
        (["prepare", "tiny_imagenet", "--set", "size=3"], 2, "has the fields: image_size, skip"),
        (
            ["prepare", "tiny_imagenet", "--image-size", "0"],
            2,
            "image_size: Input should be greater than or equal to 1",
        ),
        (["prepare", "cifar10", "--image-size", "8"], 2, "has the fields: none"),
        (["prepare", "inaturalist", "--set", "clients=geo_5"], 2, "Input should be 'user_120k', 'geo_100'"),
        (["prepare", "tiny_imagenet", "--from", "/nowhere"], 1, "/nowhere: "),
        (["prepare", "domainnet", "--from", "/etc"], 1, "/etc: expected clipart.zip or infograph.zip or"),
        (["prepare", "digits", "--from", "/etc"], 1, "digits reads no archive"),
        (["prepare", "pacs"], 1, "cannot be fetched without a person; it is offered at https://sketchx"),
    ],
)
def test_mistakes_are_reported(words: list[str], code: int, said: str, tmp_path: Path, capsys: Any) -> None:
    assert main([*words, "--root", str(tmp_path)]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("form", ["archive", "renamed", "folder of archives", "unpacked", "above the unpacked"])
def test_from(form: str, tiny: Path, tmp_path: Path) -> None:
    (archive,) = (tiny / "tiny_imagenet").glob("*.zip")
    folder = tmp_path / "mine"
    folder.mkdir()
    path = folder / ("other.zip" if form == "renamed" else archive.name)
    archive.rename(path)
    if "unpacked" in form:
        subprocess.run(["python3", "-m", "zipfile", "-e", path, folder], check=True)
        path.unlink()
    where = {"archive": path, "renamed": path, "unpacked": folder / "tiny-imagenet-200"}.get(form, folder)
    assert main(["prepare", "tiny_imagenet", "--root", str(tiny), "--from", str(where), "--set", "image_size=8"]) == 0
    assert len(DATASETS["tiny_imagenet"](image_size=8).load(tiny).labels) == 10


# ---------------------------------------------------------------- downloads


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.001)
    with serving() as made:
        yield made


def test_prepare_fetches(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = cifar_archive(tmp_path / "server").read_bytes()
    server.cuts = [len(server.content) // 2]
    publish(monkeypatch, "cifar100", tmp_path / "server", url=f"{server.url}/file")
    root = tmp_path / "root"
    assert main(["prepare", "cifar100", "--root", str(root)]) == 0
    assert len(server.ranges_asked) == 2, "once more after the cut"
    assert (root / "cifar100" / "cifar-100-python.tar.gz").read_bytes() == server.content
    assert len(DATASETS["cifar100"]().load(root).labels) == 50
    assert len(server.ranges_asked) == 2


def test_a_run_fetches_what_is_small_and_says_how_to_get_the_rest(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = cifar_archive(tmp_path / "server").read_bytes()
    publish(monkeypatch, "cifar100", tmp_path / "server", url=f"{server.url}/file", size=0)
    with pytest.raises(DataError, match=r"too much to fetch unasked: run fedbench data prepare cifar100 --root"):
        DATASETS["cifar100"]().load(tmp_path / "root")
    assert not server.ranges_asked
    publish(monkeypatch, "cifar100", tmp_path / "server", url=f"{server.url}/file", size=len(server.content))
    assert len(DATASETS["cifar100"]().load(tmp_path / "root").labels) == 50


def test_a_failed_download_says_what_else_can_be_done(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar_archive(tmp_path / "server")
    publish(monkeypatch, "cifar100", tmp_path / "server", url=f"{server.url}/gone")
    with pytest.raises(DataError) as error:
        DATASETS["cifar100"]().load(tmp_path / "root")
    for said in ("404", f"{server.url}/gone", "put it at", str(tmp_path / "root" / "cifar100"), "--from PATH", "md5"):
        assert said in str(error.value)
    assert left(tmp_path / "root" / "cache") == []


def test_a_dry_run_fetches_and_decodes_nothing(
    server: Server, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tiny_imagenet lies there as an archive, cifar100 could be fetched, glyphs be drawn, the folder be decoded."""
    server.content = cifar_archive(tmp_path / "server").read_bytes()
    publish(monkeypatch, "cifar100", tmp_path / "server", url=f"{server.url}/file")
    monkeypatch.setattr(cost, "_extents", {})
    imagefolder = {"name": "imagefolder", "path": str(image_tree(tmp_path / "mine", each=10))}
    names: list[Any] = ["cifar100", {"name": "tiny_imagenet", "image_size": 16}, "glyphs", imagefolder]
    base = {"method": "head_only", "partition": "iid", "rounds": 2, "clients": {"number": 2, "per_round": 2}}
    content = {"base": base, "grid": {"dataset": names}, "machine": {"data": str(tiny)}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    before = files(tmp_path)

    def dry_run() -> tuple[list[bool], str]:
        words = [str(tmp_path / "sweep.yaml"), "--results", str(tmp_path / "results"), "--dry-run"]
        assert sweep.main([*words, "--json"]) == 0
        runs = json.loads(capsys.readouterr().out)["runs"]
        assert sweep.main(words) == 0
        return [run["multiply_adds"] is not None for run in runs], capsys.readouterr().out

    counted, said = dry_run()
    assert counted == [False, False, True, True]
    command = "run fedbench data prepare"
    assert (
        f"no estimate: cifar100 is not prepared below {tiny} with these options: {command} cifar100 --root {tiny}"
        in said
    )
    assert f"{command} tiny_imagenet --root {tiny} --set image_size=16" in said
    assert files(tmp_path) == before
    assert server.ranges_asked == []
    assert main(["prepare", "tiny_imagenet", "--root", str(tiny), "--set", "image_size=16"]) == 0
    capsys.readouterr()
    assert dry_run()[0] == [False, True, True, True]
    assert server.ranges_asked == []


# ---------------------------------------------------------------- interruptions, full disks, many jobs


class Counted(pixels._Work):
    """Notes in the folder `counts` what each process decodes, and takes its time."""

    counts: Path
    seconds = 0.0

    def _decode_file(self, rows: list[int], name: str, read: Any) -> None:
        super()._decode_file(rows, name, read)
        (self.counts / f"{os.getpid()}-{rows[0]}").touch()
        time.sleep(self.seconds)


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Counted.counts, Counted.seconds = tmp_path / "counts", 0.0
    Counted.counts.mkdir()
    monkeypatch.setattr(pixels, "_Work", Counted)
    monkeypatch.setattr(pixels, "SAFE_EVERY", 1)
    return Counted.counts


def prepare(root: Path, size: int = 8) -> None:
    DATASETS["tiny_imagenet"](image_size=size).load(root)


def test_a_killed_prepare_resumes(tiny: Path, counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "cores", lambda: 1)
    Counted.seconds = 0.1
    victim = fork.Process(target=prepare, args=(tiny,))
    victim.start()
    while len(list(counts.iterdir())) < 7:  # four wait in the queue of one worker: by now some are noted as done
        time.sleep(0.01)
    assert victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    (half,) = (tiny / "cache").glob(".tiny_imagenet-8px-*.tmp")
    done = int(np.fromfile(half / "done.bin", dtype=bool).sum())
    assert 0 < done < 10
    Counted.seconds = 0.0
    made = DATASETS["tiny_imagenet"](image_size=8).load(tiny)
    assert len(list(counts.glob(f"{os.getpid()}-*"))) == 10 - done, "only the rest is decoded"
    assert [round(value, -1) for value in level(made.images)] == [0, 10, 20, 40, 50, 60, 200, 210, 220, 230]
    assert len(left(tiny / "cache")) == 2, "the table and the pixels, and nothing half-made"


def at_once(root: Path, begin: Any) -> None:
    begin.wait()
    prepare(root)


SLOW = [pytest.param(without, marks=pytest.mark.slow) for without in ("", "locks")]


@pytest.mark.slow
@pytest.mark.parametrize("without", [*SLOW, "locks and claims"])
def test_fifty_jobs_decode_once(without: str, tiny: Path, counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: Any) -> None:
        raise OSError("this file system has none")

    if "locks" in without:
        monkeypatch.setattr(lock.fcntl, "flock", no_lock)
    if "claims" in without:
        free = SimpleNamespace(remove_claims=lambda: None)
        monkeypatch.setattr(lock, "acquire", lambda folder: contextlib.nullcontext(free))
    Counted.seconds = 0.02
    begin = fork.Barrier(50, timeout=120)
    jobs = [fork.Process(target=at_once, args=(tiny, begin)) for _ in range(50)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(240)
    assert [job.exitcode for job in jobs] == [0] * 50
    decoded = sorted(int(path.name.partition("-")[2]) for path in counts.iterdir())
    if "claims" in without:
        assert len(decoded) > 10, "without any lock several work, and all are right"
    else:
        assert decoded == list(range(10))
    assert len(left(tiny / "cache")) == 2, "the table and the pixels, and nothing half-made"
    made = DATASETS["tiny_imagenet"](image_size=8).load(tiny)
    assert [round(value, -1) for value in level(made.images)] == [0, 10, 20, 40, 50, 60, 200, 210, 220, 230]


@pytest.mark.slow  # decodes 22,000 images
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux")
def test_memory_does_not_grow_with_the_images() -> None:
    few, many = memory((2_000, 20_000), size=64).values()
    assert many["pixels_mib"] - few["pixels_mib"] > 200
    assert many["peak_mib"] - few["peak_mib"] < 40, "names and labels, never the pixels"


def refused(root: Path, said: list[str], limit: int) -> None:
    """In a process of its own: prepare with too little room, and write down what is said."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        prepare(root, 64)
    except DataError as error:
        (root / "said").write_text(str(error))


def check_refusal(root: Path, limit: int = 0) -> None:
    job = fork.Process(target=refused, args=(root, [], limit))
    job.start()
    job.join(60)
    assert job.exitcode == 0
    assert "this cache cannot be written" in (root / "said").read_text()
    assert [name for name in left(root / "cache") if "px" in name] == [], "no half cache"


def test_a_limit_on_the_size_of_files(tiny: Path) -> None:
    check_refusal(tiny, limit=64_000)  # ten images of 64 x 64 pixels take 122,880 bytes
    prepare(tiny, 64)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (small / "tiny_imagenet").mkdir()
        tiny_imagenet(small / "tiny_imagenet")
        publish(monkeypatch, "tiny_imagenet", small / "tiny_imagenet")
        check_refusal(small)
        assert "No space left" in (small / "said").read_text()
        prepare(small, 8)
    finally:
        subprocess.run(["umount", small], check=True)
