"""System: pfl-research, one process, its own FedAvg and simulated backend on tensors in memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
from pfl.aggregate.weighting import WeightByDatapoints  # type: ignore[import-not-found]
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found]
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
from pfl.data.pytorch import PyTorchTensorDataset  # type: ignore[import-not-found]
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # type: ignore[import-not-found]
from pfl.metrics import Metrics, StringMetricName, Weighted  # type: ignore[import-not-found]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]
from torch import Tensor

from benchmarks.peers.model import Prompted, backbone, tensors
from benchmarks.peers.task import EVALUATION_BATCH, Log, Task, Values


class Measured(Prompted):
    """The model with the two methods that pfl calls."""

    log: Log

    def loss(self, pixels: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        self.log.step()
        return super().loss(pixels, y)

    @torch.inference_mode()
    def metrics(self, pixels: Tensor, y: Tensor) -> dict[str, Any]:
        """Correct answers of a batch."""
        return {"accuracy": Weighted(int((self(pixels).argmax(-1) == y).sum()), len(y))}


class TrainOnly(FederatedAveraging):  # type: ignore[misc]
    """FedAvg without the evaluation of the cohort before and after its local training in the first round."""

    def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> Any:
        """The next round's work."""
        contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics


class After(TrainingProcessCallback):  # type: ignore[misc]
    """Times each round, and evaluates centrally after the rounds that the task names."""

    def __init__(self, task: Task, log: Log, tests: Any) -> None:
        self.task, self.log, self.tests, self.start = task, log, tests, 0.0

    def on_train_begin(self, *, model: Any) -> Any:
        """The first round begins."""
        self.start = time.monotonic()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """A round has ended."""
        self.log.rounds.append(time.monotonic() - self.start)
        if self.task.evaluates(central_iteration):
            with self.log.evaluation():
                metrics = model.evaluate(self.tests, eval_params=NNEvalHyperParams(local_batch_size=EVALUATION_BATCH))
                share = metrics[StringMetricName("accuracy")].overall_value
                self.log.right.append(round(share * len(self.task.test)))
        self.start = time.monotonic()
        return False, Metrics()


def run(folder: Path, log: Log) -> Values:
    """Train and evaluate; returns the final values."""
    task = Task.load(folder)
    pixels, labels = tensors(task)
    inner = Measured(backbone(task.case["architecture"], task.weights), task.start)
    inner.log = log

    def visits() -> Iterator[tuple[int, int]]:
        yield from np.ndindex(task.cohort.shape)

    def user(visit: tuple[int, int]) -> Any:
        samples = torch.from_numpy(task.samples(*visit))
        return PyTorchTensorDataset((pixels[samples], labels[samples]))

    tests = torch.from_numpy(task.test)
    order = visits()
    model = PyTorchModel(inner, torch.optim.SGD, torch.optim.SGD(inner.trained(), lr=1.0))
    TrainOnly().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds,
            train_cohort_size=task.cohort.shape[1],
            val_cohort_size=None,
        ),
        SimulatedBackend(
            training_data=FederatedDataset(user, lambda: next(order)),
            val_data=None,
            postprocessors=[WeightByDatapoints()],
        ),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=task.case["lr"], local_batch_size=int(task.case["batch"])
        ),
        callbacks=[After(task, log, PyTorchTensorDataset((pixels[tests], labels[tests])))],
        send_metrics_to_platform=False,
    )
    return inner.values()
