"""Runs finish despite full disks, unreachable shares, lack of memory, crashes, signals and second copies of a sweep."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workplace import HOME, Workplace, numbers, until

from fedbench.base import lease, process_cache, processes, provenance, storage
from fedbench.base.record_schema import TotalCosts
from fedbench.base.records import RecordsError, RunFolder
from fedbench.jobs import attempt, failures, job, supervisor
from fedbench.run import experiment

NOTHING = TotalCosts(0, 0, 0)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB that a test may fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk that can be filled needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk up to its last page; the file that does."""

    def write() -> None:
        with open(folder / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))

    with pytest.raises(OSError, match="No space"):
        write()
    return folder / "fill"


def quiet(place: Workplace) -> dict[str, list[dict[str, Any]]]:
    """The numbers of the sweep where nothing goes wrong, by run."""
    assert place.run("--cluster", "inline", "--no-watch", "--results", str(place.path / "quiet")) == 0
    return {f.name: numbers(RunFolder(f)) for f in (place.path / "quiet").iterdir() if (f / "done").exists()}


# -- files -----------------------------------------------------------------------------------------------------
def test_what_a_full_disk_left_of_a_record_is_removed_with_the_next_record(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run")
    folder.plan({"identity": {}})
    folder.append({"round": 1, "text": "a" * 100})
    full = fill(small_disk)
    with pytest.raises(OSError, match="No space") as error:
        folder.append({"round": 2, "text": "a" * 10_000})  # a part of it fits into the page begun
    assert (folder.path / "records.jsonl").read_bytes().count(b"\n") == 1
    assert storage.is_away(error.value, folder.path)
    before = folder.records()
    full.unlink()
    with open(folder.path / "records.jsonl", "a") as file:
        file.write('{"round": 1000, "te')  # a kill in the middle of a line
    folder.append({"round": 1001})
    assert folder.records() == [*before, {"round": 1001}]
    folder.append({"round": 1001})
    assert folder.records() == [*before, {"round": 1001}]  # never twice


def test_a_full_disk_spares_the_checkpoint(small_disk: Path) -> None:
    import torch

    from fedbench.run import checkpoint

    state = {"x": torch.arange(50_000.0)}
    checkpoint.save(small_disk, state, 1, NOTHING, 0.0)
    checkpoint.save(small_disk, state, 2, NOTHING, 0.0)
    fill(small_disk)
    with pytest.raises(Exception, match=r"No space|serializing") as error:
        checkpoint.save(small_disk, {"x": torch.arange(200_000.0)}, 3, NOTHING, 0.0)
    assert storage.is_away(error.value, small_disk)
    assert checkpoint.load(small_disk).round == 2  # type: ignore[union-attr]
    assert (small_disk / checkpoint.PREVIOUS).exists()
    assert not list(small_disk.glob(".*"))


def test_faults_of_the_disk_are_distinguished_from_faults_of_the_run(tmp_path: Path) -> None:
    def raised(error: Exception, cause: Exception | None = None) -> bool:
        error.__cause__ = cause
        return storage.is_away(error, tmp_path)

    assert raised(OSError(errno.ESTALE, "stale"))
    for number in (errno.EACCES, errno.EPERM):  # an expired ticket, if it is of a file of the results
        assert raised(OSError(number, "denied", str(tmp_path / "run" / "records.jsonl")))
        assert not raised(OSError(number, "denied", "/somewhere/else"))
    assert raised(OSError(errno.EKEYEXPIRED, "key has expired"))
    assert raised(ValueError("cannot be read"), OSError(errno.ENOSPC, "full"))
    assert not raised(FileNotFoundError(errno.ENOENT, "a plug-in's own file", "/somewhere/else"))
    assert raised(FileNotFoundError(errno.ENOENT, "back by now", str(tmp_path / "records.jsonl")))
    assert raised(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    for cause in (RuntimeError("No such file or directory (os error 2)"), FileNotFoundError("no number and no name")):
        with pytest.raises(FileNotFoundError) as error, storage.errors_at(tmp_path / "checkpoint.safetensors"):
            raise cause
        assert raised(error.value)
    with pytest.raises(ValueError, match="a mistake"), storage.errors_at(tmp_path):
        raise ValueError("a mistake")
    assert not raised(OSError("no number, and the disk is not full"))
    assert not raised(ValueError("a mistake"))
    assert storage.is_away(ValueError("anything"), tmp_path / "gone")


def test_a_run_waits_for_a_full_disk_and_a_share_that_is_away(place: Workplace, small_disk: Path) -> None:
    place.write(methods=["slow"], seeds=[0], rounds=12)
    want = quiet(place)
    place.results = small_disk / "results"
    (folder,) = place.plan()
    os.environ["TEST_PAUSE"] = "0.1"
    try:
        worker = threading.Thread(target=job.run_job, args=(place.results, [folder.path.name]))
        worker.start()
        until(lambda: folder.progress().get("round", 0) >= 2)
        full = fill(small_disk)
        time.sleep(1.0)
        assert not (folder.path / "done").exists()
        full.unlink()
        round_ = folder.progress().get("round", 0)
        until(lambda: folder.progress().get("round", 0) > round_)
        place.results.rename(small_disk / "away")
        time.sleep(1.0)
        (small_disk / "away").rename(place.results)
        worker.join(timeout=60)
    finally:
        del os.environ["TEST_PAUSE"]
    assert folder.status == "done"
    assert numbers(folder) == want[folder.path.name]
    assert len(want[folder.path.name]) == 12
    assert folder.log.read_text().count("start of") == 3
    assert not folder.notes()


def test_an_unreachable_folder_is_not_taken_for_one_without_records_and_checkpoints(tmp_path: Path) -> None:
    from fedbench.run import checkpoint

    folder = RunFolder(tmp_path / "run")
    folder.plan({"identity": {}})
    assert checkpoint.load(folder.path) is None
    folder.cut_records(0)
    folder.append({"round": 1})
    with lease.acquire(folder.path) as held:
        assert held is not None
        folder.path.rename(tmp_path / "away")
        for ask in (
            held.check,
            held.remove_claims,
            lambda: folder.cut_records(0),
            lambda: checkpoint.load(folder.path),
        ):
            with pytest.raises(FileNotFoundError) as error:
                ask()
            assert storage.is_away(error.value, folder.path)
        (tmp_path / "away").rename(folder.path)
        held.check()
    assert folder.records() == [{"round": 1}]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EKEYEXPIRED])
def test_a_run_waits_for_an_expired_ticket(place: Workplace, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Every eighth file that the run opens for writing is refused, four times in all."""
    place.write(methods=["head_only"], seeds=[0], rounds=6)
    want = quiet(place)
    (folder,) = place.plan()
    monkeypatch.setattr(storage.Patience, "__call__", lambda _: True)
    really_open, writes, refused = open, 0, 0

    def open_or_refuse(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        nonlocal writes, refused
        if set(mode) & set("wax") and str(path).startswith(str(folder.path)) and "log.txt" not in str(path):
            writes += 1
            if writes % 8 == 0 and refused < 4:
                refused += 1
                raise OSError(number, os.strerror(number), str(path))
        return really_open(path, mode, *rest, **more)

    monkeypatch.setattr("builtins.open", open_or_refuse)
    job.run_job(place.results, [folder.path.name])
    monkeypatch.undo()
    assert refused == 4
    assert folder.status == "done"
    assert numbers(folder) == want[folder.path.name]
    assert not folder.notes()


@pytest.mark.slow  # some hundred disturbances
@pytest.mark.parametrize("method", ["head_only", "pep_fedpt"])
def test_a_share_that_flickers_costs_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    place.write(methods=[method], seeds=[0, 1, 2, 3], rounds=60)
    want = quiet(place)
    folders = place.plan()
    monkeypatch.setattr(storage.Patience, "__call__", lambda _: time.sleep(0.002) or True)
    over, dice, disturbances = threading.Event(), random.Random(0), 0

    def flicker() -> None:
        nonlocal disturbances
        while not over.wait(dice.uniform(0, 0.06)):
            place.results.rename(place.path / "away")
            time.sleep(dice.uniform(0, 0.003))
            (place.path / "away").rename(place.results)
            disturbances += 1

    other = threading.Thread(target=flicker)
    other.start()
    try:
        job.run_job(place.results, [folder.path.name for folder in folders])
    finally:
        over.set()
        other.join()
    assert disturbances > 20
    assert {folder.path.name: numbers(folder) for folder in folders} == want
    assert [folder.status for folder in folders] == ["done"] * 4
    assert not any(folder.notes() for folder in folders)


def test_patience_ends(place: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(RecordsError, match="no such results folder"):
        job.run_job(tmp_path / "never there", ["x"])


# -- rules -----------------------------------------------------------------------------------------------------
def test_every_kind_has_a_rule_and_is_counted_for_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert failures.note(folder, "out_of_memory", "once")
    assert not failures.note(folder, "error", "no second try")
    assert all(failures.note(folder, "out_of_memory", "again") for _ in range(3))
    assert not failures.note(folder, "out_of_memory", "five times")
    assert failures.note(folder, "killed", "by itself")
    assert not failures.note(folder, "error", "no second try")
    assert not failures.note(folder, "error", "nor a third")
    folder.report_progress(round=3, rounds=9)
    assert failures.note(folder, "out_of_memory", "but further than before")
    assert failures.without_progress(folder.notes()) == {"out_of_memory": 1}
    assert failures.counted(folder.notes())["out_of_memory"] == 6
    assert failures.halvings(folder.notes()) == 6
    folder.note(kind=failures.RETRY, reason="asked for")
    assert failures.note(folder, "out_of_memory", "counted anew")
    assert failures.counted(folder.notes()) == {"out_of_memory": 1}
    assert failures.halvings(folder.notes()) == 7  # and yet never as large again
    kinds = {kind for kind, _ in attempt.FAILURE_KINDS} | {
        "error",
        "storage",
        "killed",
        "crashed",
        "timeout",
        "preempted",
        "lost",
    }
    assert kinds <= failures.MORE_ATTEMPTS.keys()


@pytest.mark.slow
def test_memory_that_runs_out_is_tried_again_with_half_the_images(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(methods=["hungry", "head_only"], seeds=[0], rounds=3)
    place.faults(0)
    want = quiet(place)
    capsys.readouterr()
    place.faults(2)
    assert place.run("--cluster", "inline") == 0
    hungry, _ = place.folders[::-1]
    assert [note["kind"] for note in hungry.notes()] == ["out_of_memory"] * 2
    whole = RunFolder(place.path / "quiet" / hungry.path.name).records()[0]["chunk_images"]
    assert [record["chunk_images"] for record in hungry.records()] == [max(1, whole >> 2)] * 3
    for record, wanted in zip(numbers(hungry), want[hungry.path.name], strict=True):
        assert record.keys() == wanted.keys()
        for name, value in wanted.items():
            assert record[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name

    place.results = place.path / "hopeless"
    place.faults(-1)
    assert place.run("--cluster", "inline") == 1
    said = capsys.readouterr().out
    hungry = next(folder for folder in place.folders if "hungry" in folder.path.name)
    reason = r"HookError: \S+/hungry\.py: merge\(\) in line \d+: RuntimeError"
    assert re.search(rf"failed {hungry.path.name} \(out_of_memory\): {reason}", said)
    assert f"failed attempts: out_of_memory 5 [log: {hungry.log}]" in said
    assert "2 runs: 1 failed, 1 done" in said
    place.faults(0)
    assert place.run("--cluster", "inline", "--retry-failed") == 0
    assert json.loads((hungry.path / "env.json").read_text())["sweep_command"].endswith("--retry-failed")


@pytest.mark.slow  # starts several processes
def test_a_crash_stops_no_other_run_and_allows_two_more_attempts(
    place: Workplace, capfd: pytest.CaptureFixture[str]
) -> None:
    place.write(methods=["crashes", "head_only"], seeds=[0, 1], cluster={"workers": 1})
    place.faults(-1)
    assert place.run("--cluster", "local") == 1
    said = capfd.readouterr().out
    assert "4 runs: 2 failed, 2 done" in said
    for folder in place.folders:
        if "crashes" in folder.path.name:
            assert [note["kind"] for note in folder.notes()] == ["crashed"] * 3
            assert f"failed {folder.path.name} (crashed): its process was killed by SIGSEGV" in said
    place.faults(2)
    assert place.run("--cluster", "local", "--retry-failed") == 0
    assert {folder.status for folder in place.folders} == {"done"}


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of 64 MB: whoever takes more in it is killed by the kernel."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / "fedbench-test"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 << 20))
        except OSError:
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("needs a control group with a limit of memory")


@pytest.mark.slow  # starts several processes
def test_a_process_killed_by_the_kernel_for_memory_is_tried_again_with_half_the_images(
    place: Workplace, small_memory: Path
) -> None:
    place.write(methods=["swallows", "head_only"], seeds=[0], rounds=3, cluster={"workers": 1})
    place.faults(1)
    watcher = place.start("--cluster", "local", TEST_GROUP=str(small_memory))
    said, _ = watcher.communicate(timeout=200)
    assert watcher.returncode == 0, said
    folder = next(folder for folder in place.folders if "swallows" in folder.path.name)
    assert [note["kind"] for note in folder.notes()] == ["out_of_memory"]
    assert "images in a pass halved 1 times" in folder.log.read_text()
    assert len(folder.records()) == 3


def test_how_a_process_ended_has_a_kind() -> None:
    assert supervisor._kind(-signal.SIGKILL, out_of_memory=True)[0] == "out_of_memory"
    assert supervisor._kind(-signal.SIGKILL, out_of_memory=False)[0] == "killed"
    assert supervisor._kind(-signal.SIGSEGV, out_of_memory=True)[0] == "crashed"
    assert supervisor._kind(1, out_of_memory=False)[0] == "crashed"


# -- accelerators ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out_of_memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "out_of_memory"),
        ("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED", "out_of_memory"),
        ("std::bad_alloc", "out_of_memory"),
        ("CUDA error: device-side assert triggered", "crashed"),
        ("CUDA error: an illegal memory access was encountered", "crashed"),
        ("CUDA error: unspecified launch failure", "crashed"),
        ("CUDA error: uncorrectable ECC error encountered", "crashed"),
        ("CUDA error: invalid argument", "error"),
        ("CUDNN_STATUS_NOT_SUPPORTED", "error"),
    ],
)
def test_errors_of_accelerators_have_a_kind(message: str, kind: str) -> None:
    assert attempt._kind_of(RuntimeError(message)) == kind
    wrapped = TypeError("a hook raised")
    wrapped.__cause__ = RuntimeError(message)
    assert attempt._kind_of(wrapped) == kind
    assert attempt.is_broken_accelerator(wrapped) == (kind == "crashed")


@pytest.mark.slow  # starts several processes
@pytest.mark.parametrize("pack", [False, True])
def test_a_broken_accelerator_ends_the_process_and_another_continues(place: Workplace, pack: bool) -> None:
    """Two device-side asserts, in one process if the runs are packed: each costs one attempt of the run that it met."""
    machine = {"checkpoint_seconds": 0, "data": str(place.path / "data"), "device": "cpu", "pack": pack}
    place.write(methods=["asserts"], seeds=[0, 1], rounds=3, cluster={"workers": 1}, machine=machine)
    place.faults(2)
    process = place.start("--cluster", "local")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    first, second = place.folders
    assert (first.status, second.status) == ("done", "done")
    kinds = [note["kind"] for folder in (first, second) for note in folder.notes()]
    assert kinds == ["crashed", "crashed"]
    log = Path(first.job()["log"]).read_text()
    assert log.count("a worker ended (its accelerator failed); another begins") == (1 if pack else 2)


def test_a_broken_accelerator_ends_a_sweep_in_its_own_process_with_a_word(
    place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(methods=["asserts"], seeds=[0, 1], rounds=1)
    place.faults(1)
    assert place.run("--cluster", "inline", "--no-watch") == 1
    assert "the accelerator is unusable in this process" in capsys.readouterr().err
    first, second = place.folders
    assert [note["kind"] for note in first.notes()] == ["crashed"]
    assert not second.notes()


# -- leaving ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_signal_stops_a_run_at_a_round_with_a_checkpoint(place: Workplace) -> None:
    place.write(
        methods=["slow"],
        seeds=[0, 1],
        rounds=40,
        machine={"checkpoint_seconds": 1e6, "device": "cpu", "data": str(place.path / "data")},
    )
    first, second = place.plan()
    command = [sys.executable, "-m", "fedbench.jobs.job", str(place.results), first.path.name, second.path.name]
    process = subprocess.Popen(
        command, cwd=HOME, env={**os.environ, "TEST_PAUSE": "0.1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: first.progress().get("round", 0) >= 3)
    for _ in range(100):  # Slurm sends one signal and the supervisor the other, and neither may hide the other
        process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == failures.EXIT_LEFT
    from fedbench.run import checkpoint

    saved = checkpoint.load(first.path)
    assert saved is not None
    assert 3 <= saved.round == first.progress()["round"] < 40  # nothing of its rounds is lost, though none was due
    assert second.status == "pending"
    assert lease.holder(first.path) is None
    assert not first.notes()


# -- leases ----------------------------------------------------------------------------------------------------
def test_a_lease_of_another_host_holds_while_its_heartbeat_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    script = (
        "import socket, sys, pathlib\n"
        "socket.gethostname = lambda: 'elsewhere'\n"
        "from fedbench.base import lease\n"
        "lease.HEARTBEAT_SECONDS = 0.05\n"
        "with lease.acquire(pathlib.Path(sys.argv[1])) as held:\n"
        "    print(held.path.name, flush=True)\n"
        "    input()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=HOME,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "claim.1\n"
        with lease.acquire(tmp_path) as held:
            assert held is None
        other.send_signal(signal.SIGSTOP)  # frozen: no heartbeats
        with lease.acquire(tmp_path) as held:
            assert held is not None
            assert held.path.name == "claim.2"
            assert held.abandoned_by is not None
            assert held.abandoned_by.host.startswith("elsewhere")
            other.send_signal(signal.SIGCONT)
            held.check()  # and what the late one does to its own old claim changes nothing
            other.communicate("\n", timeout=30)
            held.check()
    finally:
        other.kill()
        other.communicate()


def test_a_process_that_was_overtaken_stops_before_it_writes(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(methods=["slow"], seeds=[0], rounds=40)
    (folder,) = place.plan()
    monkeypatch.setenv("TEST_PAUSE", "0.1")
    worker = threading.Thread(target=job.run_job, args=(place.results, [folder.path.name]))
    worker.start()
    until(lambda: folder.progress().get("round", 0) >= 2)
    assert lease._link(folder.path / "claim.7", processes.Owner("elsewhere", 1, "1"))
    worker.join(timeout=30)
    assert not worker.is_alive()
    assert folder.status == "running"
    assert folder.progress()["round"] < 40
    assert lease.owner_of(folder.path / "claim.7") is not None  # the other's, untouched


def test_a_process_that_was_overtaken_by_one_that_has_finished_stops_too(tmp_path: Path) -> None:
    with lease.acquire(tmp_path) as late:
        assert late is not None
        late.check()
        assert lease._link(tmp_path / "claim.2", processes.Owner("elsewhere", 1, "1"))
        with pytest.raises(lease.Overtaken, match="was taken by"):
            late.check()
        late.remove_claims()  # as the other does in the end: no claim is left
        with pytest.raises(lease.Overtaken, match="finished it"):
            late.check()


def test_of_many_threads_that_want_a_folder_one_holds_it_at_a_time(tmp_path: Path) -> None:
    inside, most, turns = 0, 0, 0

    def want() -> None:
        nonlocal inside, most, turns
        while turns < 40:
            with lease.acquire(tmp_path) as held:
                if held is None:
                    continue
                inside += 1
                most = max(most, inside)
                held.check()
                time.sleep(0.002)
                turns += 1
                inside -= 1

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert turns >= 40
    assert most == 1


@pytest.mark.slow  # starts several processes
def test_two_sweeps_at_once_start_each_run_once(place: Workplace) -> None:
    place.write(methods=["slow"], seeds=[0, 1], rounds=10, cluster={"workers": 2})
    sweeps = [place.start("--cluster", "local", TEST_PAUSE="0.1") for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in sweeps]
    assert [process.returncode for process in sweeps] == [0, 0]
    assert sorted("2 started" in text for text in said) == [False, True]
    assert [folder.log.read_text().count("start of") for folder in place.folders] == [1, 1]


@pytest.mark.slow  # starts several processes
def test_cancel_ends_this_sweep_alone(place: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    place.write(methods=["slow"], seeds=[0], rounds=400, cluster={"workers": 1}, name="other")
    place.start("--cluster", "local", "--no-watch", TEST_PAUSE="0.05").communicate(timeout=240)
    (other,) = place.folders
    place.write(methods=["slow"], seeds=[0, 1], rounds=400, cluster={"workers": 1}, name="mine")
    place.start("--cluster", "local", "--no-watch", TEST_PAUSE="0.05").communicate(timeout=240)
    cancelled = next(folder for folder in place.folders if folder.path != other.path)
    until(lambda: all(folder.progress().get("round", 0) >= 1 for folder in (cancelled, other)))
    capfd.readouterr()
    assert place.run("--cancel") == 0
    said = capfd.readouterr().out
    assert "1 runs cancelled" in said
    assert "Runs that another sweep started, and that continue: 1." in said
    assert lease.holder(cancelled.path) is None
    assert lease.holder(other.path) is not None
    assert place.run("--status", "--json") == 0
    states = {run["name"]: run["state"] for run in json.loads(capfd.readouterr().out)["runs"]}
    assert states == {cancelled.path.name: "missing", other.path.name: "running"}
    place.write(methods=["slow"], seeds=[0], rounds=400, cluster={"workers": 1}, name="other")
    assert place.run("--cancel") == 0
    assert lease.holder(other.path) is None


# -- packs and provenance --------------------------------------------------------------------------------------
def test_the_runs_of_a_pack_share_what_is_frozen(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedbench.vit import backbone

    made: list[str] = []

    def spied(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            made.append(name)
            return real(*args, **more)

        return call

    for module, name in (
        (backbone, "make"),
        (experiment, "Images"),
        (experiment, "features"),
        (experiment, "data_hash"),
    ):
        monkeypatch.setattr(module, name, spied(name, getattr(module, name)))
    process_cache.clear()
    place.write(methods=["head_only", "breaks", "slow"], seeds=[0, 1])
    names = [folder.path.name for folder in place.plan()]
    job.run_job(place.results, [name for name in names if "breaks" not in name])
    assert sorted(made) == ["Images", "data_hash", "features", "make"]
    want = {folder.path.name: numbers(folder) for folder in place.folders if folder.status == "done"}
    assert len(want) == 4
    place.results = place.path / "alone"
    for folder in place.plan():  # each alone, and one that breaks between
        process_cache.clear()
        job.run_job(place.results, [folder.path.name])
    assert {f.path.name: numbers(f) for f in place.folders if f.status == "done"} == want


def test_env_json_names_code_packages_and_machine(place: Workplace) -> None:
    place.write(seeds=[0])
    assert place.run("--cluster", "inline") == 0
    (folder,) = place.folders
    env = json.loads((folder.path / "env.json").read_text())
    assert env["packages"]["torch"] == env["torch"]
    assert env["sweep_command"].startswith("fedbench sweep ")
    assert {"commit", "dirty", "code", "command", "job", "device", "hostname"} <= env.keys()
    assert folder.records()[0]["code"] == env["code"]


def test_the_code_of_a_run_is_its_core_and_its_own_plug_ins(place: Workplace) -> None:
    file = place.path / "mine" / "methods" / "slow.py"
    before = provenance.code_hash((file,))
    provenance.code_hash.cache_clear()
    file.write_text(file.read_text() + "# changed\n")
    after = provenance.code_hash((file,))
    assert before.split("-")[0] == after.split("-")[0]
    assert before.split("-")[1] != after.split("-")[1]
