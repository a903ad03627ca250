"""Seconds, rates and peak memory of a run, and how many images and clients are in one pass."""

from __future__ import annotations

import resource
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedbench.plan.config import Machine
from fedbench.run import meter
from fedbench.run.experiment import _chunk_of_clients, _images_in_a_pass
from fedbench.run.meter import Meter, SharedClock

CPU = torch.device("cpu")


def test_seconds_go_on_from_those_before_an_interruption_and_the_rate_does_not() -> None:
    times = iter([100.0, 105.0, 105.0, 110.0, 110.0])
    made = Meter(CPU, 20.0, lambda: next(times))
    made.count(30)
    made.count(20)
    assert made.seconds == 25.0
    assert made.rate == 10.0
    measured = made.read()
    assert (measured.seconds, measured.samples_per_second) == (30.0, 5.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0 < measured.peak_memory_bytes <= peak < 1.1 * measured.peak_memory_bytes


def test_a_rate_before_any_time_has_passed_is_a_number() -> None:
    made = Meter(CPU, 0.0, lambda: 7.0)
    made.count(3)
    assert made.rate == pytest.approx(3e9)


def test_a_mark_counts_from_the_start_or_the_last_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(value=50.0)
    monkeypatch.setattr(meter.time, "monotonic", lambda: now.value)
    made = Meter(CPU, 20.0)
    now.value = 53.0
    assert made.since_mark() == 3.0
    made.mark()
    now.value = 57.5
    assert made.since_mark() == 4.5


def test_a_shared_clock_counts_the_time_in_its_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(value=10.0)
    monkeypatch.setattr(meter.time, "monotonic", lambda: now.value)
    clock = SharedClock()
    for inside, after in ((2.0, 5.0), (4.0, 7.0)):
        before = clock()
        with clock.counting():
            now.value += inside
            assert clock() == before + inside
        now.value += after
    assert clock() == 6.0


@pytest.mark.parametrize(
    ("images", "batch", "clients", "piece"),
    [
        (320, 32, 10, 32),
        (65, 32, 2, 32),
        (63, 32, 1, 32),
        (31, 32, 1, 32),  # nearly a batch: it is not cut into 31 and 1
        (16, 32, 1, 16),
        (10, 32, 1, 11),  # three pieces of 11, 11 and 10
        (1, 5, 1, 1),
    ],
)
def test_a_pass_holds_whole_clients_or_an_equal_piece_of_a_batch(
    images: int, batch: int, clients: int, piece: int
) -> None:
    assert _chunk_of_clients(images, batch) == (clients, piece)


def test_images_in_a_pass_are_halved_each_time_that_memory_ran_out() -> None:
    nothing: Any = None
    machine = Machine(chunk_images=13)
    chosen = [_images_in_a_pass(nothing, nothing, nothing, "float32", machine, CPU, n) for n in range(6)]
    assert chosen == [13, 6, 3, 1, 1, 1]
