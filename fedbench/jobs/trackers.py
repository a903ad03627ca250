"""Sends the records of a run to TensorBoard, Weights & Biases or MLflow as they are made; off by default.

Turn them on with `machine: {track: [tensorboard]}` in a sweep file, or with ``--set machine.track=[tensorboard]``. They
never affect a run: if a tracker fails, the run's log says so, and the run continues without it. No tracker needs a network:
Weights & Biases works offline unless WANDB_MODE says otherwise, and MLflow writes below the results unless
MLFLOW_TRACKING_URI names a server.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedbench.base.lock import one_at_a_time
from fedbench.base.records import RunFolder

log = logging.getLogger("fedbench")


class Tracker(Protocol):
    """A destination of numbers besides the records."""

    def write(self, round_: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of one evaluated round."""

    def close(self) -> None:
        """Finish, after the last numbers."""


class TensorBoard:
    """Event files in the run's folder, below ``tensorboard``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, round_: int, numbers: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, round_)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases under the run's own name; offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedbench"),
            id=folder.name,
            name=folder.name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True),
        )

    def write(self, round_: int, numbers: Mapping[str, float]) -> None:
        """Log all numbers with the round as their step."""
        self.run.log(dict(numbers), step=round_)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow under the run's own name, which a later process continues. Without a server, a file beside the runs."""

    def __init__(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _mlflow_file(folder.parent.resolve())
        self.client, experiment = _mlflow(uri)
        same = self.client.search_runs([experiment], f"tags.mlflow.runName = '{folder.name}'")
        self.id = (same[0] if same else self.client.create_run(experiment, run_name=folder.name)).info.run_id
        if not same:
            for key, value in config.items():
                self.client.log_param(self.id, key, value)

    def write(self, round_: int, numbers: Mapping[str, float]) -> None:
        """Log one metric for each number, with the round as its step."""
        for name, value in numbers.items():
            self.client.log_metric(self.id, name, value, step=round_)

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.id)


def _mlflow(uri: str) -> tuple[Any, str]:
    """A client of `uri`, and the id of the experiment there."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client, name = MlflowClient(tracking_uri=uri), os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedbench")
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client, client.create_experiment(name)
        except MlflowException:  # another run has made it meanwhile
            experiment = client.get_experiment_by_name(name)
    return client, experiment.experiment_id


def _mlflow_file(results: Path) -> str:
    """The address of a database below `results`. It is moved there: MLflow cannot create it in two processes at once."""
    file = results / "mlflow.db"
    with one_at_a_time(file, file.exists) as is_ours:
        if is_ours:
            with tempfile.TemporaryDirectory(dir=results, prefix=".mlflow") as folder:
                _mlflow(f"sqlite:///{Path(folder) / file.name}")
                (Path(folder) / file.name).replace(file)
    return f"sqlite:///{file}"


TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


@dataclass(frozen=True)
class TrackedFolder(RunFolder):
    """A run's folder whose records also go to trackers."""

    trackers: dict[str, Tracker] = field(default_factory=dict)

    def append(self, record: dict[str, Any]) -> None:
        """Write to disk first, then to every tracker that has not failed."""
        super().append(record)
        numbers = {
            name: float(value)
            for name, value in record.items()
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and name not in ("round", "rounds", "seed")
        }
        for name in list(self.trackers):
            _guarded(name, self.trackers, lambda tracker: tracker.write(int(record["round"]), numbers))


@contextmanager
def tracked(folder: RunFolder, names: Sequence[str], config: Mapping[str, Any]) -> Iterator[RunFolder]:
    """`folder`, with its records also sent to the trackers `names`. A tracker that raises is logged and not used again."""
    if not names:
        yield folder
        return
    done = max((int(record["round"]) for record in folder.records()), default=0)
    trackers: dict[str, Tracker] = {}
    for name in names:
        try:
            trackers[name] = TRACKERS[name](folder.path, config, done)
        except Exception as error:  # noqa: BLE001 - the run continues without it
            log.warning("%s does not follow this run: %s: %s", name, type(error).__name__, error)
    try:
        yield TrackedFolder(folder.path, trackers)
    finally:
        for name in list(trackers):
            _guarded(name, trackers, lambda tracker: tracker.close())


def _guarded(name: str, trackers: dict[str, Tracker], does: Any) -> None:
    try:
        does(trackers[name])
    except Exception as error:  # noqa: BLE001 - as above
        del trackers[name]
        log.warning("%s no longer follows this run: %s: %s", name, type(error).__name__, error)
