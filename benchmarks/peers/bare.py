"""System: the bare PyTorch loop, with nothing around the arithmetic."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.peers.model import count_right, make, tensors
from benchmarks.peers.task import Log, Task, Values, mean_of


def run(folder: Path, log: Log) -> Values:
    """Train and evaluate; returns the final values."""
    task = Task.load(folder)
    model, (pixels, labels) = make(task), tensors(task)
    values = model.values()
    for round_ in range(task.rounds):
        with log.round():
            updates = []
            for row in range(task.cohort.shape[1]):
                model.set(values)
                optimizer = torch.optim.SGD(model.trained(), lr=task.case["lr"])
                for batch in task.batches(round_, row):
                    log.step()
                    loss = model.loss(pixels[batch], labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                updates.append((len(task.samples(round_, row)), model.values()))
            values = mean_of(updates)
        if task.evaluates(round_):
            with log.evaluation():
                model.set(values)
                log.right.append(count_right(model, pixels, labels, task.test))
    return values
