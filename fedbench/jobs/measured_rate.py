"""The speed of finished runs, from which `--dry-run` estimates hours: multiply-adds per second, evaluation included."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbench.base.records import RunFolder, run_folders

MOST = 500  # most finished runs that are read


@dataclass(frozen=True)
class Rate:
    """The median speed of finished runs with one backbone on one kind of device. ``device``: its name."""

    multiply_adds_per_second: float
    device: str
    on_gpu: bool
    threads: int
    runs: int

    def hours(self, multiply_adds: float, runs_per_gpu: int = 1) -> float:
        """Hours of a GPU, which `runs_per_gpu` runs share, or of a run on a CPU."""
        return multiply_adds / self.multiply_adds_per_second / 3600 / (runs_per_gpu if self.on_gpu else 1)

    @property
    def words(self) -> str:
        """Where it was measured."""
        of = f"{self.runs} finished run{'s' * (self.runs > 1)}"
        place = (
            self.device if self.on_gpu else f"{self.device or 'CPU'}, {self.threads} thread{'s' * (self.threads > 1)}"
        )
        return f"{self.multiply_adds_per_second:.2g} multiply-adds per second, median of {of} on {place}"


def measured_rates(results: Path) -> Mapping[str, Rate]:
    """{backbone: rate} of the finished runs below `results`, each on the kind of device that most of them used."""
    measured: dict[str, list[tuple[tuple[bool, str, int], float]]] = {}
    finished = [folder for folder in run_folders(results) if folder.status == "done"]
    for folder in finished[:MOST]:
        backbone, speed = _speed(folder)
        if speed > 0:
            environment = folder.environment()
            on_gpu = folder.progress().get("device") == "cuda"
            place = (on_gpu, str(environment.get("device", "")), int(environment.get("threads", 1)))
            measured.setdefault(backbone, []).append((place, speed))
    return {backbone: _rate(speeds) for backbone, speeds in measured.items()}


def _speed(folder: RunFolder) -> tuple[str, float]:
    """A run's backbone without its image size, and its multiply-adds per second; 0 if its record does not tell."""
    records = folder.records()
    if not records:
        return "", 0.0
    last = records[-1]
    seconds, work = last.get("seconds") or 0.0, last.get("total_multiply_adds") or 0
    return str(last.get("backbone", "")).rpartition("@")[0], work / seconds if seconds > 0 else 0.0


def _rate(speeds: Sequence[tuple[tuple[bool, str, int], float]]) -> Rate:
    place = Counter(place for place, _ in speeds).most_common(1)[0][0]
    here = [speed for where, speed in speeds if where == place]
    on_gpu, device, threads = place
    return Rate(statistics.median(here), device, on_gpu, threads, len(here))
