"""Compressed uploads against numpy, and their bytes against what a client would write."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from fedbench.contract import isolation, rounds, violation
from fedbench.contract.rounds import payload
from fedbench.contract.world import Case
from fedbench.method import Aggregation, ClientUpdates, HookError, Method, Param, Task
from fedbench.run.server import Server, parameters

AGGREGATION = tiny.plugins().classes["aggregation"]


@dataclasses.dataclass(frozen=True)
class Two(Method):
    """A vector and a matrix that clients share, and a value of their own."""

    def params(self, task: Task) -> dict[str, Param]:
        return {"x": Param(torch.ones(5)), "y": Param(torch.zeros(2, 4)), "mine": Param(torch.zeros(3), "local")}


def server_of(aggregation: Aggregation, dtype: torch.dtype = torch.float64) -> Server:
    task = Task(2, 4, 4, 1, 4, torch.ones(4, 2), seed=0)
    return Server(Two(), aggregation, parameters(Two(), aggregation, task), 4, torch.device("cpu"), dtype)


def round_of(server: Server, x: np.ndarray, y: np.ndarray, n: list[int]) -> ClientUpdates:
    """Clients 0, 1, ... that end at the rows of `x` [K, 5] and `y` [K, 2, 4]."""
    who, sent = torch.arange(len(x)), server.send(torch.arange(len(x)))
    ones = torch.ones(len(x), dtype=torch.float64)
    updated = sent | {"x": torch.from_numpy(x), "y": torch.from_numpy(y), "mine": sent["mine"] + 1}
    return ClientUpdates(who, sent, updated, {}, torch.tensor(n, dtype=torch.float64), ones, ones, 0.1)


def largest(change: np.ndarray, share: float) -> np.ndarray:
    """The change with all but its largest absolute numbers set to zero."""
    flat, kept = change.flatten(), np.zeros(change.size)
    for at in sorted(range(change.size), key=lambda i: -abs(flat[i]))[: int(np.ceil(share * change.size))]:
        kept[at] = flat[at]
    return kept.reshape(change.shape)


def in_8_bits(change: np.ndarray) -> np.ndarray:
    scale = np.abs(change).max() / 127
    return np.rint(change / scale) * scale


def in_1_bit(change: np.ndarray) -> np.ndarray:
    """The mean absolute number with the sign of each: EF-signSGD, algorithm 1."""
    return np.where(change >= 0, 1, -1) * np.abs(change).mean()


CODES = {
    "topk": (AGGREGATION["topk"](share=0.3), lambda change: largest(change, 0.3)),
    "topk without feedback": (AGGREGATION["topk"](share=0.3, error_feedback=False), lambda c: largest(c, 0.3)),
    "quantized": (AGGREGATION["quantized"](), in_8_bits),
    "quantized without feedback": (AGGREGATION["quantized"](error_feedback=False), in_8_bits),
    "sign": (AGGREGATION["sign"](), in_1_bit),
    "sign without feedback": (AGGREGATION["sign"](error_feedback=False), in_1_bit),
}


@pytest.mark.parametrize("case", CODES)
def test_three_rounds_are_those_of_numpy(case):
    aggregation, code = CODES[case]
    server, draw, n = server_of(aggregation), np.random.default_rng(1), np.array([1, 3, 2])
    values = {"x": np.ones(5), "y": np.zeros((2, 4))}
    residual = {name: np.zeros((3, *value.shape)) for name, value in values.items()}
    for _ in range(3):
        ends = {name: value + draw.normal(size=(3, *value.shape)) for name, value in values.items()}
        server.merge(round_of(server, ends["x"], ends["y"], n.tolist()))
        for name, value in values.items():
            changes = ends[name] - value + residual[name]
            sent = np.stack([code(change) for change in changes])
            if "without" not in case:
                residual[name] = changes - sent
            values[name] = value + np.tensordot(n / n.sum(), sent, 1)
            assert np.allclose(server.values[name].numpy(), values[name], rtol=1e-12, atol=1e-14)
    mine = server.memory.read(torch.arange(4))
    assert mine["mine"][:, 0].tolist() == [3, 3, 3, 0]
    assert ("residual.x" in mine) == ("without" not in case)


@pytest.mark.parametrize(
    ("name", "up"),
    [("topk", 8 * 2 + 8 * 3), ("quantized", 5 + 4 + 8 + 4), ("sign", 1 + 4 + 1 + 4), ("fedavg", 4 * 5 + 4 * 8)],
)
def test_the_bytes_of_an_upload_are_those_of_its_message(name, up):
    """Top-k: 2 of 5 and 3 of 8 numbers with their places; 8 bits: a byte for each number and a scale for each value.

    Signs: a byte for up to 8 numbers, and a scale for each value.
    """
    aggregation = CODES[name][0] if name in CODES else Aggregation()
    server = server_of(aggregation, torch.float32)
    assert server.bytes_per_client() == (up, 4 * 5 + 4 * 8)
    updates = round_of(server, np.random.default_rng(0).normal(size=(1, 5)).astype("f4"), np.ones((1, 2, 4), "f4"), [1])
    if name != "fedavg":
        assert payload(server.message(updates)[0]) == up


def test_signs_are_packed_and_read_back_by_hand():
    """[1, -3, 0, 2, -4, 0, 0, 0, -2]: bits 1011 0111 read from the lowest are 1 + 4 + 8 + 32 + 64 + 128 = 237; mean 12 / 9."""
    sign, change = AGGREGATION["sign"](), torch.tensor([1.0, -3, 0, 2, -4, 0, 0, 0, -2])
    parts = sign.compress(change)
    assert parts["signs"].tolist() == [237, 0]
    assert parts["signs"].dtype == torch.uint8
    assert parts["scale"].item() == pytest.approx(12 / 9)
    back = sign.expand(parts, change) * 9
    assert torch.allclose(back, torch.tensor([12.0, -12, 12, 12, -12, 12, 12, 12, -12]))
    assert not sign.expand(sign.compress(change * 0), change).any()


@dataclasses.dataclass(frozen=True)
class Halves(Aggregation):
    """Clients send half precision, which needs no decode."""

    def encode(self, p: dict[str, Tensor], received: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: p[name].half() for name in received}


def test_a_half_precision_message_has_two_bytes_for_each_number_and_no_decode():
    server = server_of(Halves())
    x, y = np.full((1, 5), 1 / 3), np.full((1, 2, 4), 2 / 3)
    server.merge(round_of(server, x, y, [1]))
    assert server.bytes_per_client()[0] == 2 * 13
    assert server.values["x"].double().tolist() == [float(np.float16(1 / 3))] * 5


@dataclasses.dataclass(frozen=True)
class Broken(Aggregation):
    """`how` says what is wrong with what it returns."""

    how: str = ""

    def encode(self, p: dict[str, Tensor], received: dict[str, Tensor]) -> Any:
        return {"list": [1], "short": {"x": p["x"]}, "shape": {**received, "x": p["x"][:2]}}[self.how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("list", r"encode\(\): ValueError: .*must only return Tensors"),
        ("short", r"encode\(\): expected values of x, y; found x"),
        ("shape", r"encode\(\): 'x' expected \[1, 5\], found \[1, 2\]"),
    ],
)
def test_a_message_that_does_not_fit_is_refused(how, message):
    server = server_of(Broken(how=how))
    with pytest.raises(HookError, match=message):
        server.merge(round_of(server, np.ones((1, 5)), np.ones((1, 2, 4)), [1]))


@dataclasses.dataclass(frozen=True)
class Leak(Aggregation):
    """A message that holds a private value of the client."""

    def encode(self, p: dict[str, Tensor], received: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: p[name] + p["prompt"].mean() for name in received}


@dataclasses.dataclass(frozen=True)
class Infinite(Aggregation):
    """A message that divides by what may be zero."""

    def encode(self, p: dict[str, Tensor], received: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: received[name] / 0 for name in received}


def test_the_contract_sees_a_message_with_private_or_infinite_values():
    local_prompt = tiny.plugins().classes["method"]["fedvpt"](prompt="local")
    assert "no trace" in (violation(isolation.local_values_stay_with_the_client, Case(local_prompt, Leak())) or "")
    shared = tiny.METHODS["fedvpt"]
    assert "finite" in (violation(rounds.uploads_are_decoded_by_the_server, Case(shared, Infinite())) or "")
