"""Accuracy per client and the numbers made of it; all clients' samples go through the backbone in shared batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.run.stacked_model import Cohort
from fedbench.data import Ints
from fedbench.run.experiment import Setting
from fedbench.run.stacked import Stacked, rows

BLOCK_BYTES = 64 << 20  # most bytes of clients' values at once: clients are evaluated in blocks
PIECE = 32  # most samples of one client in a batch; clients' sets are cut into pieces of nearly equal size


@dataclass(frozen=True)
class Accuracies:
    """Right answers and samples per client, [clients] each."""

    right: NDArray[np.int64]
    count: NDArray[np.int64]

    @property
    def each(self) -> NDArray[np.float64]:
        """Accuracy per client, a fraction; NaN for a client without samples."""
        with np.errstate(invalid="ignore"):
            return self.right / np.where(self.count > 0, self.count, np.nan)

    @classmethod
    def joined(cls, blocks: Sequence[Accuracies]) -> Accuracies:
        """Those of several blocks of clients, one after the other."""
        return cls(np.concatenate([b.right for b in blocks]), np.concatenate([b.count for b in blocks]))


@torch.inference_mode()
def accuracies(cohort: Cohort, values: Stacked, read: Stacked, parts: Sequence[Ints], chunk: int) -> Accuracies:
    """Accuracy of client k, whose values are row k of `values`, on the samples ``parts[k]``."""
    pieces = sorted(_pieces(parts), key=lambda piece: -len(piece[1]))
    right = np.zeros(len(parts), dtype=np.int64)
    prior = cohort.method.logit_prior in ("eval", "both")
    blocks: list[list[tuple[int, Ints]]] = []
    start = 0
    while start < len(pieces):
        blocks.append(pieces[start : start + max(1, chunk // len(pieces[start][1]))])
        start += len(blocks[-1])

    @torch.inference_mode()
    def hits(block: list[tuple[int, Ints]]) -> Tensor:
        index = _rectangle([piece for _, piece in block], len(block[0][1]))
        at = torch.tensor([k for k, _ in block], device=cohort.labels.device)
        samples = torch.from_numpy(np.maximum(index, 0)).to(at.device)
        logits = cohort.forward(rows(values, at) | read, samples, prior).logits
        hit = (logits.argmax(-1) == cohort.labels[samples]) & torch.from_numpy(index >= 0).to(at.device)
        return hit.sum(1)

    found = cohort.spread(hits, blocks)
    for block, hit in zip(blocks, found, strict=True):  # read back here: nothing waits for the device in between
        np.add.at(right, [k for k, _ in block], hit.cpu().numpy())
    return Accuracies(right, np.array([len(part) for part in parts]))


def _pieces(parts: Sequence[Ints]) -> list[tuple[int, Ints]]:
    return [
        (k, piece)
        for k, part in enumerate(parts)
        if len(part)
        for piece in np.array_split(part, math.ceil(len(part) / PIECE))
    ]


def _rectangle(pieces: Sequence[Ints], width: int) -> Ints:
    block = np.full((len(pieces), width), -1, dtype=np.int64)
    for row, piece in zip(block, pieces, strict=True):
        row[: len(piece)] = piece
    return block


def summary(test: Accuracies, held_out: NDArray[np.bool_]) -> dict[str, float | None]:
    """The metrics of the clients that train, and of those held out (null where there are none).

    Mean over clients (unweighted), worst client, 10th percentile, mean of the bottom decile (at least one client),
    standard deviation over clients (population), and accuracy of all samples pooled.
    """
    each = test.each
    inside, outside = each[~held_out], each[held_out]
    inside, outside = inside[~np.isnan(inside)], outside[~np.isnan(outside)]
    decile = max(1, math.ceil(len(inside) / 10))
    pooled = test.right[~held_out].sum() / test.count[~held_out].sum()
    return {
        "mean_accuracy": float(inside.mean()),
        "worst_accuracy": float(inside.min()),
        "p10_accuracy": float(np.percentile(inside, 10)),
        "bottom_decile_accuracy": float(np.sort(inside)[:decile].mean()),
        "std_accuracy": float(inside.std()),
        "pooled_accuracy": float(pooled),
        "held_out_mean_accuracy": float(outside.mean()) if len(outside) else None,
        "held_out_worst_accuracy": float(outside.min()) if len(outside) else None,
    }


def evaluate(setting: Setting) -> tuple[dict[str, Any], pa.Table]:
    """All metrics of the present state, and of each client its accuracy and what it trains on (classes, samples of each).

    A run without `test_data` knows the validation accuracy alone.
    """
    split, server, run = setting.split, setting.server, setting.run
    everyone = np.arange(run.clients.number)
    found: list[tuple[Accuracies, Accuracies]] = []
    blocks = -(-len(everyone) * server.row_bytes() // BLOCK_BYTES)
    for block in np.array_split(everyone, min(max(1, blocks), len(everyone))):
        values = personal(setting, block)
        test_parts = [split.test[k] if run.test_data else split.test[k][:0] for k in block]
        parts = (test_parts, [split.validation[k] for k in block])
        one, other = (accuracies(setting.cohort, values, server.read(), part, setting.chunk) for part in parts)
        found.append((one, other))
    test, validation = (Accuracies.joined(part) for part in zip(*found, strict=True))
    held_out = split.held_out
    metrics: dict[str, Any] = summary(test, held_out) if run.test_data else {}
    with np.errstate(invalid="ignore"):
        own = validation.each[~held_out]
        metrics["val_mean_accuracy"] = float(np.nanmean(own)) if validation.count[~held_out].any() else None
    if run.test_data:
        metrics["global_accuracy"] = global_accuracy(setting, test)
    kept = [np.unique(setting.samples.labels[part], return_counts=True) for part in split.train]
    clients = pa.table(
        {
            "client": everyone,
            "held_out": held_out,
            "train_samples": split.train.sizes,
            "test_samples": test.count,
            "accuracy": test.each,
            "val_accuracy": validation.each,
            "classes": [names for names, _ in kept],
            "class_samples": [counts for _, counts in kept],
        }
    )
    return metrics, clients


def global_accuracy(setting: Setting, test: Accuracies) -> float | None:
    """Accuracy of the server's model, as a client of which nothing is known has it, on the global test set (else None)."""
    samples, server = setting.samples, setting.server
    whole = setting.split.global_test(samples)
    if setting.cohort.method.finetune_epochs or (stranger := server.stranger()) is None:
        return None
    if not server.memory.spec and np.array_equal(np.sort(setting.split.test.indices), whole):
        return float(test.right.sum() / len(whole))  # all clients have the same model, so their test sets are enough
    parts = accuracies(setting.cohort, stranger, server.read(), [whole], setting.chunk)
    return float(parts.each[0])


def personal(setting: Setting, clients: Ints) -> Stacked:
    """The values that each client is evaluated with: the present ones, fine-tuned on its own data where the method says."""
    server, run = setting.server, setting.run
    epochs = setting.cohort.method.finetune_epochs
    if not epochs:
        return server.send(torch.from_numpy(clients).to(server.device))
    report = setting.train(clients, run.local.lr, "finetune", epochs=epochs)
    return rows(report.got, torch.argsort(report.clients))
