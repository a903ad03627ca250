"""Evaluation's blocks of clients, pieces of their samples, and the metrics of a few clients, worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedbench.data.batches import padded
from fedbench.run import evaluation
from fedbench.run.evaluation import Accuracies

PARTS = [np.arange(70), np.arange(0), np.arange(100, 132), np.arange(200, 233)]


def shape(blocks: Any) -> list[list[tuple[int, int]]]:
    return [[(client, len(piece)) for client, piece in block] for block in blocks]


def test_samples_are_cut_into_nearly_equal_pieces_of_at_most_32() -> None:
    pieces = evaluation._pieces(PARTS)
    assert [(client, len(piece)) for client, piece in pieces] == [(0, 24), (0, 23), (0, 23), (2, 32), (3, 17), (3, 16)]
    assert np.concatenate([piece for _, piece in pieces]).tolist() == np.concatenate(PARTS).tolist()


@pytest.mark.parametrize(
    ("chunk", "one_client", "blocks"),
    [
        (64, False, [[(2, 32), (0, 24)], [(0, 23), (0, 23)], [(3, 17), (3, 16)]]),
        (69, False, [[(2, 32), (0, 24)], [(0, 23), (0, 23), (3, 17)], [(3, 16)]]),
        (10, False, [[(2, 32)], [(0, 24)], [(0, 23)], [(0, 23)], [(3, 17)], [(3, 16)]]),
        (64, True, [[(0, 24), (0, 23)], [(0, 23)], [(2, 32)], [(3, 17), (3, 16)]]),
    ],
)
def test_a_block_holds_as_many_of_the_largest_pieces_as_fit(chunk: int, one_client: bool, blocks: Any) -> None:
    assert shape(evaluation.blocks_of(PARTS, chunk, one_client)) == blocks
    assert evaluation.blocks_of([PARTS[1]], chunk, one_client) == []


def test_a_rectangle_is_padded_with_sample_0() -> None:
    made = padded([np.array([5, 6, 7]), np.array([8])])
    assert made.tolist() == [[5, 6, 7], [8, 0, 0]]


def test_the_values_of_a_block_are_copied_only_if_it_has_several_clients() -> None:
    values = {"a": torch.arange(12.0).view(3, 4)}
    piece = np.arange(2)
    several = evaluation._rows_of(values, [(1, piece), (2, piece), (1, piece)], torch.tensor([1, 2, 1]))["a"]
    assert torch.equal(several, values["a"][[1, 2, 1]])
    alone = evaluation._rows_of(values, [(1, piece), (1, piece)], torch.tensor([1, 1]))["a"]
    assert torch.equal(alone, values["a"][[1, 1]])
    assert alone.data_ptr() == values["a"][1].data_ptr()


@pytest.mark.parametrize(("clients", "sizes"), [(7, [3, 2, 2]), (5, [3, 2]), (2, [2])])
@pytest.mark.parametrize("test_data", [True, False])
def test_clients_are_evaluated_in_blocks_whose_values_fit(
    monkeypatch: pytest.MonkeyPatch, clients: int, sizes: list[int], test_data: bool
) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def accuracies(model: Any, values: Any, read: Any, parts: Any, chunk: int) -> Accuracies:
        seen.append((values, [len(part) for part in parts]))
        return Accuracies(np.array([values[0]] * len(parts)), np.array([len(part) for part in parts]))

    monkeypatch.setattr(evaluation, "BLOCK_BYTES", 25)
    monkeypatch.setattr(evaluation, "personal", lambda experiment, block: block.tolist())
    monkeypatch.setattr(evaluation, "accuracies", accuracies)
    monkeypatch.setattr(
        evaluation, "_accuracies", lambda *a: (accuracies(*a[:-1]), 3)
    )  # 3 right answers of the global model
    split = SimpleNamespace(test=[np.arange(k + 1) for k in range(clients)], validation=[np.arange(9)] * clients)
    experiment: Any = SimpleNamespace(
        split=split,
        server=SimpleNamespace(row_bytes=lambda: 10, read=dict, memory=SimpleNamespace(spec={"prompt": None})),
        run=SimpleNamespace(clients=SimpleNamespace(number=clients), test_data=test_data),
        model=SimpleNamespace(text=None, prepared=lambda values, read: (values, read)),
        chunk=1,
    )
    test, validation, right = evaluation._client_accuracies(experiment, unseen={})
    assert [len(values) for values, _ in seen[::2]] == sizes
    assert test.count.tolist() == [(k + 1) * test_data for k in range(clients)]
    assert validation.count.tolist() == [9] * clients
    assert right == 3 * len(sizes)
    assert [values for values, _ in seen[::2]] == [values for values, _ in seen[1::2]]


def test_eleven_clients_have_a_decile_of_two_and_held_out_ones_stand_apart() -> None:
    right = [*range(11), 0, 9, 3, 0]
    count = [10] * 11 + [0] + [10] * 2 + [0]
    held_out = np.array([False] * 12 + [True] * 3)
    test = Accuracies(np.array(right), np.array(count))
    np.testing.assert_array_equal(np.isnan(test.each), np.array(count) == 0)
    made = evaluation.summary(test, held_out, 0.25)
    assert made.mean_accuracy == pytest.approx(0.5)
    assert made.worst_accuracy == 0.0
    assert made.p10_accuracy == pytest.approx(0.1)
    assert made.bottom_decile_accuracy == pytest.approx(0.05)
    assert made.std_accuracy == pytest.approx(math.sqrt(0.1))  # the mean of (k - 5)^2 / 100 over k = 0..10
    assert made.pooled_accuracy == pytest.approx(0.5)
    assert (made.held_out_mean_accuracy, made.held_out_worst_accuracy) == (pytest.approx(0.6), 0.3)
    assert made.global_accuracy == 0.25
    nobody = evaluation.summary(test, held_out & (test.count == 0), None)
    assert (nobody.held_out_mean_accuracy, nobody.held_out_worst_accuracy) == (None, None)
    assert evaluation._mean_accuracy(test, test.count == 0) is None
    assert evaluation._mean_accuracy(test, ~held_out) == pytest.approx(0.5)
