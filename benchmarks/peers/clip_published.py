"""System: PromptFL one client after another, as published codes train it; each step runs both encoders in full.

The loop is that of `federated_main.py` of PEILab-Federated-Learning/PromptFL and of FLiP's `ClientFedAvg`: a client starts from
the server's contexts, and every batch runs the image encoder without and the text encoder with gradient. Three things are
cheaper here than in these codes: images are tensors in memory instead of files that a loader transforms, only contexts are
copied between server and clients instead of whole models, and no client keeps a model, as each does in FLiP.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.peers.clip_model import make
from benchmarks.peers.model import count_right, tensors
from benchmarks.peers.task import Log, Task, Values, mean_of


def run(folder: Path, log: Log) -> Values:
    """Train and evaluate. Returns the final contexts and the class texts behind them."""
    task = Task.load(folder)
    model, (pixels, labels) = make(task, folder), tensors(task)
    server = task.start
    for round_ in range(task.rounds):
        with log.round():
            updates = []
            for row in range(task.cohort.shape[1]):
                model.set(server)
                optimizer = torch.optim.SGD([model.context], lr=task.case["lr"])
                for batch in task.batches(round_, row):
                    log.step()
                    loss = F.cross_entropy(model(pixels[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                updates.append((len(task.samples(round_, row)), model.values()))
            server = mean_of(updates)
        if task.evaluates(round_):
            with log.evaluation():
                model.set(server)
                log.right.append(count_right(model, pixels, labels, task.test))
    model.set(server)
    with torch.no_grad():
        return server | {"class_texts": model.texts().numpy()}
