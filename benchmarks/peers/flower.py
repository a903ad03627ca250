"""System: Flower's simulation on Ray, its own FedAvg; the model stays in the actors, the server evaluates."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]
from flwr.simulation import run_simulation  # type: ignore[import-not-found]

from benchmarks.peers.model import Prompted, count_right, make, tensors
from benchmarks.peers.task import VALUES, Log, Task, Values

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
ACTORS = int(os.environ.get("PEERS_FLOWER_ACTORS", "2"))  # each has its share of the threads


@cache
def loaded(folder: str, threads: int) -> tuple[Task, Prompted, torch.Tensor, torch.Tensor]:
    """The state that a process keeps between messages."""
    torch.set_num_threads(threads)
    task = Task.load(Path(folder))
    return task, make(task), *tensors(task)


def values_of(arrays: Any) -> Values:
    """Arrays of a message by name."""
    return {name: arrays[name].numpy().astype(np.float32) for name in VALUES}


def record_of(values: Values) -> Any:
    """A message's record of arrays by name."""
    return ArrayRecord({name: torch.from_numpy(value) for name, value in values.items()})


client_app = ClientApp()


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Any, context: Any) -> Any:
    """Local training of the client that the message names."""
    config = message.content["config"]
    task, model, pixels, labels = loaded(config["folder"], max(1, THREADS // ACTORS))
    round_, row = config["server-round"] - 1, config["row"]
    model.set(values_of(message.content["arrays"]))
    optimizer = torch.optim.SGD(model.trained(), lr=task.case["lr"])
    begun = time.monotonic()
    for batch in task.batches(round_, row):
        loss = model.loss(pixels[batch], labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = {"num-examples": len(task.samples(round_, row)), "begun": begun}
    content = RecordDict({"arrays": record_of(model.values()), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


class Drawn(FedAvg):  # type: ignore[misc]
    """FedAvg with the task's cohorts, and with a timer around its rounds."""

    def __init__(self, task: Task, folder: Path, log: Log) -> None:
        super().__init__(fraction_evaluate=0.0, train_metrics_aggr_fn=lambda records, key: MetricRecord())
        self.task, self.folder, self.log, self.start_ = task, folder, log, 0.0

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """A message for each client of the cohort."""
        self.start_ = time.monotonic()
        nodes = sorted(grid.get_node_ids())
        for row, client in enumerate(self.task.cohort[server_round - 1]):
            named = ConfigRecord({"server-round": server_round, "row": row, "folder": str(self.folder)})
            content = RecordDict({"arrays": arrays, "config": named})
            yield Message(content=content, message_type="train", dst_node_id=nodes[client])

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> Any:
        """FedAvg's aggregation, with the round's time logged."""
        replies = list(replies)
        self.log.step(min(reply.content["metrics"]["begun"] for reply in replies))
        result = super().aggregate_train(server_round, replies)
        self.log.rounds.append(time.monotonic() - self.start_)
        return result


def run(folder: Path, log: Log) -> Values:
    """Train and evaluate; returns the final values."""
    server_app, final = ServerApp(), []
    clients = int(json.loads((folder / "case.json").read_text())["clients"])
    with np.load(folder / "task.npz") as drawn:
        start = {name: drawn[name] for name in VALUES}

    @server_app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        task, model, pixels, labels = loaded(str(folder), THREADS)

        def evaluate(server_round: int, arrays: Any) -> Any:
            if server_round == 0 or not task.evaluates(server_round - 1):
                return None
            with log.evaluation():
                model.set(values_of(arrays))
                log.right.append(count_right(model, pixels, labels, task.test))
            return MetricRecord({"right": log.right[-1]})

        strategy = Drawn(task, folder, log)
        result = strategy.start(
            grid=grid, initial_arrays=record_of(start), num_rounds=task.rounds, evaluate_fn=evaluate
        )
        final.append(values_of(result.arrays))

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": THREADS, "include_dashboard": False},
            "client_resources": {"num_cpus": THREADS // ACTORS, "num_gpus": 0.0},
        },
    )
    return final[0]
