"""A folder for tests of sweeps: a tiny dataset, methods that wait or fail, a sweep file, and its command line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedbench.base.records import MEASURED, RunFolder, run_folders
from fedbench.cli import sweep

HOME = Path(__file__).resolve().parents[1]

# A linear head that waits at each merge, so that there is something to interrupt on any machine, or breaks there.
MERGE = {
    "slow": "time.sleep(float(os.environ.get('TEST_PAUSE', '0')))",
    "breaks": "raise RuntimeError('broken\\non purpose')",
    # more than any machine has, until the file says that it was asked for often enough
    "hungry": "left = tries(); left and torch.empty(1 << 50)",
    "swallows": "left = tries(); left and swallow()",
    "asserts": "if tries(): raise RuntimeError('CUDA error: device-side assert triggered')",
    "crashes": "left = tries(); left and os.kill(os.getpid(), signal.SIGSEGV)",
}
METHOD = '''
"""A method of the tests."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fedbench import method


def tries():
    """How many faults are left, one less each time; for ever where the file says -1."""
    path = Path(__file__).with_name("left")
    left = int(path.read_text()) if path.exists() else 0
    path.write_text(str(left - 1 if left > 0 else left))
    return left


def swallow():
    """Take more memory than the kernel grants to this process, which the test has given a group of its own."""
    group = Path(os.environ["TEST_GROUP"])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    bytearray(1 << 28).replace(b"\\0", b"a")


@dataclass(frozen=True)
class Method(method.Method):
    """Does one thing at each merge."""

    def merge(self, server, report):
        """The mean."""
        {merge}
        return {{}}
'''


class Workplace:
    """A folder with a tiny dataset, two methods of its own, and a sweep file."""

    def __init__(self, path: Path) -> None:
        self.path, self.results, self.file = path, path / "results", path / "sweep.yaml"
        labels = np.arange(40) % 2
        images = np.random.default_rng(0).integers(0, 80, (40, 16, 16, 3)) + 90 * labels[:, None, None, None]
        np.savez(path / "tiny.npz", images=images.astype(np.uint8), labels=labels, is_test=np.arange(40) % 10 < 4)
        (path / "mine" / "methods").mkdir(parents=True)
        for name, merge in MERGE.items():
            text = METHOD.format(merge=merge)
            (path / "mine" / "methods" / f"{name}.py").write_text(text)
        self.write()

    def write(self, methods: Any = ("head_only",), seeds: Any = (0, 1), rounds: int = 2, **more: Any) -> None:
        base = {
            "dataset": {"name": "npz", "path": str(self.path / "tiny.npz")},
            "partition": "iid",
            "rounds": rounds,
            "evaluate_every": 1,
            "clients": {"number": 4, "per_round": 2},
        }
        machine = {"checkpoint_seconds": 0, "data": str(self.path / "data"), "device": "cpu"}
        grid = {"method": list(methods), "seed": list(seeds)}
        self.file.write_text(yaml.safe_dump({"base": base, "grid": grid, "machine": machine, **more}))

    def arguments(self, *more: str) -> list[str]:
        return [str(self.file), "--results", str(self.results), "--plugins", str(self.path / "mine"), *more]

    def run(self, *more: str) -> int:
        return sweep.main(self.arguments(*more))

    def start(self, *more: str, **env: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-u", "-m", "fedbench.sweep", *self.arguments(*more)]
        return subprocess.Popen(
            command,
            cwd=HOME,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # what runs in the background may ignore it
        )

    def faults(self, count: int) -> None:
        """The next `count` merges of `hungry`, `swallows` or `crashes` go wrong; -1: all."""
        (self.path / "mine" / "methods" / "left").write_text(str(count))

    def plan(self) -> list[RunFolder]:
        """The folders of all runs, as a sweep leaves them to a job."""
        made = sweep.read_sweep(self.file, [self.path / "mine"])
        for planned in made.runs:
            RunFolder(self.results / planned.name).plan(made.on_disk(planned))
        return [RunFolder(self.results / planned.name) for planned in made.runs]

    @property
    def folders(self) -> list[RunFolder]:
        return list(run_folders(self.results))


def until(probe: Callable[[], Any], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return value


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in folder.records()]


NOTES = (".submitit", "__pycache__", "content")  # the last: hashes of the user's files


def files(folder: Path) -> dict[str, int]:
    """All files but the notes of who has a run, or the planning, at the moment."""
    paths = [p for p in folder.rglob("*") if p.is_file() and "job.json" not in p.name and p.parent.name not in NOTES]
    return {str(p): p.stat().st_mtime_ns for p in paths}
