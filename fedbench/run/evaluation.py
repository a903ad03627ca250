"""Accuracy per client and its summary. The samples of all clients pass through the backbone in shared batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.base.record_schema import INFERENCE, TestMetrics, ValidationMetrics
from fedbench.data import Ints
from fedbench.data.batches import padded
from fedbench.run.choice import chosen
from fedbench.run.experiment import Experiment
from fedbench.run.stacked import Stacked, rows
from fedbench.run.stacked_model import StackedModel
from fedbench.vit.images import sent_to

BLOCK_BYTES = 64 << 20  # clients are evaluated in blocks, whose values take at most this many bytes
PIECE = 32  # most samples of one client in a batch; clients' sets are cut into pieces of nearly equal size


@dataclass(frozen=True)
class Accuracies:
    """Correct answers and samples per client, [clients] each."""

    right: NDArray[np.int64]
    count: NDArray[np.int64]

    @property
    def each(self) -> NDArray[np.float64]:
        """Accuracy per client, a fraction; NaN for a client without samples."""
        with np.errstate(invalid="ignore"):
            return self.right / np.where(self.count > 0, self.count, np.nan)

    @classmethod
    def joined(cls, blocks: Sequence[Accuracies]) -> Accuracies:
        """The accuracies of several blocks of clients, concatenated."""
        return cls(np.concatenate([b.right for b in blocks]), np.concatenate([b.count for b in blocks]))


def accuracies(model: StackedModel, values: Stacked, read: Stacked, parts: Sequence[Ints], chunk: int) -> Accuracies:
    """Accuracy of client k, whose values are row k of `values`, on the samples ``parts[k]``."""
    return _accuracies(model, values, read, parts, chunk, None)[0]


@torch.inference_mode()
def _accuracies(
    model: StackedModel, values: Stacked, read: Stacked, parts: Sequence[Ints], chunk: int, unseen: Stacked | None
) -> tuple[Accuracies, int]:
    """As `accuracies`, and the correct answers of a client with the prepared values `unseen` [1, ...], if any, on all of them.

    Both read each image in one pass, of which they share what is equal. One copy brings the sample numbers to the device, a
    second the clients and lengths of pieces. A third brings back the hits.
    """
    prior = model.method.adds_prior_in_evaluation
    count = np.array([len(part) for part in parts])
    blocks = blocks_of(parts, chunk, one_client=model.method.backbone_weights is not None)
    if not blocks:
        return Accuracies(np.zeros(len(parts), dtype=np.int64), count), 0
    values, read = model.prepared(values, read)
    rectangles = [padded([piece for _, piece in block]) for block in blocks]
    flat = model.sample_index(np.concatenate([rectangle.ravel() for rectangle in rectangles]))
    indices = flat.split([rectangle.size for rectangle in rectangles])
    clients = np.array([k for block in blocks for k, _ in block])
    lengths = np.array([len(piece) for block in blocks for _, piece in block])
    at = sent_to(model.labels.device, np.stack([clients, lengths])).split([len(block) for block in blocks], 1)

    @torch.inference_mode()
    def hits(number: int) -> Tensor:
        index = indices[number].view(rectangles[number].shape)
        rows_, lengths_ = at[number]
        versions = [_rows_of(values, blocks[number], rows_) | read]
        if unseen is not None:
            versions.append(_repeated(unseen, 0, len(index)) | read)
        passes = model.forward_versions(versions, index, prior)
        labels = model.labels[model.on_device(index)]
        real = torch.arange(index.shape[1], device=labels.device) < lengths_[:, None]  # the rest is padding
        return torch.stack([((each.logits.argmax(-1) == labels) & real).sum(1) for each in passes])

    hits_of_pieces = torch.cat(model.thread_map(hits, range(len(blocks))), 1).cpu().numpy()  # [versions, pieces]
    right = np.zeros(len(parts), dtype=np.int64)
    np.add.at(right, clients, hits_of_pieces[0])
    return Accuracies(right, count), int(hits_of_pieces[1:].sum())


def blocks_of(parts: Sequence[Ints], chunk: int, one_client: bool) -> list[list[tuple[int, Ints]]]:
    """The pieces of all clients in blocks of about `chunk` samples, largest pieces first; each piece with its client.

    With `one_client`, a block holds pieces of one client only, so that the client's backbone weights are not copied.
    """
    pieces = sorted(_pieces(parts), key=lambda piece: (piece[0] if one_client else 0, -len(piece[1])))
    blocks: list[list[tuple[int, Ints]]] = []
    for client, piece in pieces:
        full = not blocks or len(blocks[-1]) >= max(1, chunk // len(blocks[-1][0][1]))
        if full or (one_client and blocks[-1][0][0] != client):
            blocks.append([])
        blocks[-1].append((client, piece))
    return blocks


def _rows_of(values: Stacked, block: Sequence[tuple[int, Ints]], clients: Tensor) -> Stacked:
    """The rows of the block's `clients` [pieces], which are on the device: a view if all are the same client, else a copy."""
    first = block[0][0]
    if all(client == first for client, _ in block):
        return _repeated(values, first, len(block))
    return rows(values, clients)


def _repeated(values: Stacked, client: int, count: int) -> Stacked:
    """The row `client` of the values, `count` times, without a copy."""
    return {name: value[client].expand(count, *value.shape[1:]) for name, value in values.items()}


def _pieces(parts: Sequence[Ints]) -> list[tuple[int, Ints]]:
    """Each client's samples in pieces of at most `PIECE`, with the client's position."""
    return [
        (k, piece)
        for k, part in enumerate(parts)
        if len(part)
        for piece in np.array_split(part, math.ceil(len(part) / PIECE))
    ]


def summary(test: Accuracies, held_out: NDArray[np.bool_], global_accuracy: float | None) -> TestMetrics:
    """The test metrics of the clients that train, and of those held out (None if there are none).

    Mean over clients (unweighted), worst client, 10th percentile, mean of the bottom decile (at least one client),
    population standard deviation over clients, and accuracy of all samples pooled.
    """
    each = test.each
    inside, outside = each[~held_out], each[held_out]
    inside, outside = inside[~np.isnan(inside)], outside[~np.isnan(outside)]
    decile = max(1, math.ceil(len(inside) / 10))
    pooled = test.right[~held_out].sum() / test.count[~held_out].sum()
    return TestMetrics(
        mean_accuracy=float(inside.mean()),
        worst_accuracy=float(inside.min()),
        p10_accuracy=float(np.percentile(inside, 10)),
        bottom_decile_accuracy=float(np.sort(inside)[:decile].mean()),
        std_accuracy=float(inside.std()),
        pooled_accuracy=float(pooled),
        held_out_mean_accuracy=float(outside.mean()) if len(outside) else None,
        held_out_worst_accuracy=float(outside.min()) if len(outside) else None,
        global_accuracy=global_accuracy,
    )


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its metrics and a table of clients. ``test`` is None if the run may not read test data."""

    test: TestMetrics | None
    validation: ValidationMetrics
    clients: pa.Table


def evaluate(experiment: Experiment) -> Evaluation:
    """Evaluate all clients, including held-out ones, with the present values."""
    held_out, unseen = experiment.split.held_out, _global_model(experiment)
    shared = unseen if unseen is not None and _tests_are_global(experiment) else None
    test, validation, right = _client_accuracies(experiment, shared)
    metrics = None
    if experiment.run.test_data:
        if shared is not None:
            accuracy: float | None = float(right / test.count.sum())
        else:
            accuracy = None if unseen is None else _global_accuracy(experiment, unseen)
        metrics = summary(test, held_out, accuracy)
    mean = _mean_accuracy(validation, ~held_out)
    return Evaluation(metrics, ValidationMetrics(mean), _client_table(experiment, test, validation))


def _global_model(experiment: Experiment) -> Stacked | None:
    """The values [1, ...] of an unknown client, with which the server's model is tested on the global test set.

    None if there is no such model because clients train or fine-tune values of their own, or if no test data may be read.
    """
    if not experiment.run.test_data or experiment.model.method.finetune_epochs:
        return None
    return experiment.server.unseen_client()


def _tests_are_global(experiment: Experiment) -> bool:
    """Whether the clients' test sets together are the global test set, each sample once."""
    split = experiment.split
    return np.array_equal(np.sort(split.test.indices), split.global_test(experiment.samples))


def _client_accuracies(experiment: Experiment, unseen: Stacked | None) -> tuple[Accuracies, Accuracies, int]:
    """Test and validation accuracies of all clients, and the correct answers of `unseen`, if any, on all their test sets.

    Without `test_data`, no client has test samples.
    """
    split, server, run, model = experiment.split, experiment.server, experiment.run, experiment.model
    everyone = np.arange(run.clients.number)
    test: list[Accuracies] = []
    validation: list[Accuracies] = []
    # Without local values, all clients have the values of `unseen`, and so its answers.
    equal = unseen is not None and not server.memory.spec
    if unseen is not None and not equal:  # its texts, before `read` below holds those that all clients share
        with torch.inference_mode():
            unseen = model.prepared(unseen, server.read())[0]
    row_bytes = server.row_bytes() + (0 if model.text is None else model.text.template.nbytes)
    total, blocks = 0, -(-len(everyone) * row_bytes // BLOCK_BYTES)
    for block in np.array_split(everyone, min(max(1, blocks), len(everyone))):
        values, read = personal(experiment, block), server.read()
        with torch.inference_mode():
            values, read = model.prepared(values, read)
        test_parts = [split.test[k] if run.test_data else split.test[k][:0] for k in block]
        result, right = _accuracies(model, values, read, test_parts, experiment.chunk, None if equal else unseen)
        test.append(result)
        total += int(result.right.sum()) if equal else right
        validation.append(accuracies(model, values, read, [split.validation[k] for k in block], experiment.chunk))
    return Accuracies.joined(test), Accuracies.joined(validation), total


def _mean_accuracy(accuracy: Accuracies, clients: NDArray[np.bool_]) -> float | None:
    """Mean over those of `clients` that have samples; None if there are none."""
    if not accuracy.count[clients].any():
        return None
    return float(np.nanmean(accuracy.each[clients]))


def _client_table(experiment: Experiment, test: Accuracies, validation: Accuracies) -> pa.Table:
    """Each client's accuracies, and its number of training samples for each of its classes.

    The table's metadata holds the multiply-adds of classifying one image.
    """
    split = experiment.split
    kept = [np.unique(experiment.samples.labels[part], return_counts=True) for part in split.train]
    return pa.table(
        {
            "client": np.arange(experiment.run.clients.number),
            "held_out": split.held_out,
            "train_samples": split.train.sizes,
            "test_samples": test.count,
            "accuracy": test.each,
            "val_accuracy": validation.each,
            "classes": [names for names, _ in kept],
            "class_samples": [counts for _, counts in kept],
        },
        metadata={INFERENCE: str(experiment.image_cost.inference)},
    )


def _global_accuracy(experiment: Experiment, unseen: Stacked) -> float:
    """Accuracy on the global test set of the server's model with the values `unseen` [1, ...] of an unknown client."""
    whole = experiment.split.global_test(experiment.samples)
    return float(accuracies(experiment.model, unseen, experiment.server.read(), [whole], experiment.chunk).each[0])


def personal(experiment: Experiment, clients: Ints) -> Stacked:
    """The values with which each client is evaluated, fine-tuned on its own data if the method asks for it."""
    server, run = experiment.server, experiment.run
    epochs = experiment.model.method.finetune_epochs
    if not epochs:
        parts = [experiment.split.train[k] for k in clients]
        return chosen(experiment.trainer, server.send(torch.from_numpy(clients)), server.read(), parts)[0]
    updates = experiment.train(clients, run.local.lr, "finetune", epochs=epochs)
    return rows(updates.updated, torch.argsort(updates.clients))
