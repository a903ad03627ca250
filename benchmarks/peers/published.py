"""System: one client at a time as in published code: PIL transforms in a DataLoader, the model reloaded per client."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.peers.model import make
from benchmarks.peers.task import Log, Task, Values


class Client(Dataset[tuple[Tensor, int]]):
    """The samples `index` of a client as images, each transformed on access."""

    def __init__(self, task: Task, index: NDArray[np.int64]) -> None:
        self.task, self.index = task, index
        size = int(task.images.shape[1])
        self.transform = transforms.Compose(
            [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        sample = int(self.index[i])
        return self.transform(Image.fromarray(self.task.images[sample])), int(self.task.labels[sample])


def averaged(states: Sequence[dict[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """FedAvg over the trained values; the rest comes from the first client."""
    shares = [n / sum(sizes) for n in sizes]
    return {
        name: sum((state[name] * share for state, share in zip(states, shares, strict=True)), torch.tensor(0.0))
        if name in ("prompt", "head.weight", "head.bias")
        else value
        for name, value in states[0].items()
    }


def run(folder: Path, log: Log) -> Values:
    """Train and evaluate; returns the final values."""
    task = Task.load(folder)
    model, batch = make(task), int(task.case["batch"])
    server = copy.deepcopy(model.state_dict())
    for round_ in range(task.rounds):
        with log.round():
            states, sizes = [], []
            for row in range(task.cohort.shape[1]):
                samples = task.samples(round_, row)  # already shuffled, so that all systems see the same batches
                model.load_state_dict(server)
                optimizer = torch.optim.SGD(model.trained(), lr=task.case["lr"])
                for x, y in DataLoader(Client(task, samples), batch_size=batch):
                    log.step()
                    loss = model.loss(x, y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                states.append(copy.deepcopy(model.state_dict()))
                sizes.append(len(samples))
            server = averaged(states, sizes)
        if task.evaluates(round_):
            with log.evaluation(), torch.no_grad():
                right = 0
                for samples in task.test_sets:
                    model.load_state_dict(server)
                    for x, y in DataLoader(Client(task, samples), batch_size=batch):
                        right += int((model(x).argmax(-1) == y).sum())
                log.right.append(right)
    model.load_state_dict(server)
    return model.values()
