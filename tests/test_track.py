"""Trackers receive the numbers of records. A tracker that fails is not used again; a missing package is a planning mistake."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedbench.base.records import RunFolder
from fedbench.jobs import trackers
from fedbench.plan.config import ConfigError
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins

RECORD = {"run": "r", "round": 5, "rounds": 10, "seed": 0, "mean_accuracy": 0.5, "global_accuracy": None, "bytes_up": 7}


class Listed:
    """A tracker that keeps what it is sent, and breaks on demand."""

    def __init__(self, breaks: bool = False) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.breaks, self.closed = breaks, False

    def write(self, round_: int, numbers: Mapping[str, float]) -> None:
        if self.breaks:
            raise OSError("no network")
        self.sent.append((round_, dict(numbers)))

    def close(self) -> None:
        self.closed = True


def folder(path: Path, **followers: Any) -> trackers.TrackedFolder:
    (path / "r").mkdir()
    return trackers.TrackedFolder(path / "r", dict(followers))


def test_records_go_to_disk_and_their_numbers_to_every_tracker(tmp_path: Path) -> None:
    good = Listed()
    followed = folder(tmp_path, good=good)
    followed.append(RECORD)
    assert followed.records() == [RECORD]
    assert good.sent == [(5, {"mean_accuracy": 0.5, "bytes_up": 7.0})]


def test_a_tracker_that_fails_is_logged_once_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Listed(), Listed(breaks=True)
    followed = folder(tmp_path, bad=bad, good=good)
    with caplog.at_level(logging.WARNING):
        followed.append(RECORD)
        followed.append(RECORD | {"round": 6})
    assert len(followed.records()) == 2
    assert [at for at, _ in good.sent] == [5, 6]
    assert [entry.getMessage() for entry in caplog.records] == ["bad no longer follows this run: OSError: no network"]


def test_trackers_are_off_by_default(tmp_path: Path) -> None:
    plain = RunFolder(tmp_path)
    with trackers.tracked(plain, (), {}) as followed:
        assert followed is plain


@pytest.mark.parametrize("name", sorted(trackers.TRACKERS))
def test_what_is_not_installed_is_a_mistake_at_planning_and_none_at_running(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed here")
    base = {"dataset": "glyphs", "partition": "iid", "method": "head_only"}
    with pytest.raises(ConfigError, match=f"{name} needs the package"):
        check_sweep({"base": base, "machine": {"track": [name]}}, plugins())
    with trackers.tracked(RunFolder(tmp_path), [name], {}) as followed:  # a node that lacks what the login node has
        followed.append(RECORD)
    assert followed.records() == [RECORD]
    assert f"{name} does not follow this run" in caplog.text


def test_tensorboard_reads_back_what_was_sent(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers.tracked(RunFolder(tmp_path), ["tensorboard"], {}) as followed:
        followed.append(RECORD)
    with trackers.tracked(RunFolder(tmp_path), ["tensorboard"], {}) as followed:  # resumed after round 5
        followed.append(RECORD | {"round": 10, "mean_accuracy": 0.75})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("mean_accuracy")] == [(5, 0.5), (10, 0.75)]


@pytest.mark.filterwarnings("ignore")  # of MLflow about its own dependencies
def test_mlflow_reads_back_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "r").mkdir()
    for at, value in ((5, 0.5), (10, 0.75)):
        with trackers.tracked(RunFolder(tmp_path / "r"), ["mlflow"], {"local.lr": 0.1}) as followed:
            followed.append(RECORD | {"round": at, "mean_accuracy": value})
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fedbench").experiment_id])
    assert [(event.step, event.value) for event in client.get_metric_history(run.info.run_id, "mean_accuracy")] == [
        (5, 0.5),
        (10, 0.75),
    ]
    assert run.data.params == {"local.lr": "0.1"}


def test_wandb_works_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with trackers.tracked(RunFolder(tmp_path), ["wandb"], {"local.lr": 0.1}) as followed:
        followed.append(RECORD)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert "follow" not in caplog.text
