"""The local recipe against torch.optim and hand-made numbers: one client at a time, every key of `local` that trains."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from oracle import laws

from fedbench.method import Param
from fedbench.plan.config import LocalConfig
from fedbench.run.client_optimizer import ClientOptimizer, Recipe, clip
from fedbench.vit.images import Images

SCALES = {"prompt": 3.0, "head": 1.0}
OPTIMIZERS = {
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr),
    "sgd with momentum": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.6),
    "sgd with decay": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.6, weight_decay=0.2),
    "adam": lambda groups, lr: torch.optim.Adam(groups, lr),
    "adam with decay": lambda groups, lr: torch.optim.Adam(groups, lr, weight_decay=0.2),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr, weight_decay=0.0),
    "adamw with decay": lambda groups, lr: torch.optim.AdamW(groups, lr, weight_decay=0.2),
}
CLIENTS = 3


def local(name: str, **more: Any) -> LocalConfig:
    """The keys of `local` that ask for the optimiser `name` of OPTIMIZERS."""
    kind, _, what = name.partition(" with ")
    momentum = 0.6 if what and kind == "sgd" else 0.0
    return LocalConfig(optimizer=kind, momentum=momentum, weight_decay=0.2 * (what == "decay"), **more)


def leaves() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = {"prompt": (CLIENTS, 2, 5), "head": (CLIENTS, 4)}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def gradient(value: torch.Tensor, step: int) -> torch.Tensor:
    """Of a function that is no parabola, so that no two optimisers agree."""
    return torch.sin(3 * value + step) + value**3


def plain(name: str, k: int, steps: int, lr: float, largest: float = math.inf) -> dict[str, torch.Tensor]:
    """Client k by itself, with torch's own optimiser."""
    values = {n: v[k].clone() for n, v in leaves().items()}
    optimizer = OPTIMIZERS[name]([{"params": [v], "lr": lr * SCALES[n]} for n, v in values.items()], lr)
    for step in range(steps):
        for v in values.values():
            v.grad = gradient(v, step)
        norm = math.sqrt(sum(float((v.grad**2).sum()) for v in values.values()))
        for v in values.values():
            v.grad *= min(1.0, largest / norm)
        optimizer.step()
    return values


def stacked(name: str, steps: tuple[int, ...], recipe: Recipe) -> dict[str, torch.Tensor]:
    """All clients at once; client k takes ``steps[k]`` steps, which descend."""
    values = leaves()
    spec = {n: Param(v[0], lr_scale=SCALES[n]) for n, v in values.items()}
    optimizer = ClientOptimizer(values, spec, local(name), recipe)
    for step in range(max(steps)):
        active = sum(count > step for count in steps)
        gradients = [gradient(v, step) for v in values.values()]
        for g in gradients:
            g[active:] = 0  # as autograd leaves it for clients without a batch
        optimizer.clip(gradients)
        optimizer.step(gradients, active)
    return values


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_clients_step_as_torchs_optimiser_steps_each(name: str) -> None:
    steps = (5, 3, 1)
    stepped = stacked(name, steps, Recipe(0.07))
    for k, count in enumerate(steps):
        for key, value in plain(name, k, count, 0.07).items():
            torch.testing.assert_close(stepped[key][k], value, rtol=1e-12, atol=1e-12)


def test_no_two_optimisers_agree() -> None:
    results = [torch.cat([v.flatten() for v in stacked(name, (3, 3, 3), Recipe(0.07)).values()]) for name in OPTIMIZERS]
    # Without decay AdamW is Adam; every other pair differs.
    same = {
        (a, b)
        for (a, x), (b, y) in itertools.combinations(zip(OPTIMIZERS, results, strict=True), 2)
        if torch.allclose(x, y)
    }
    assert same == {("adam", "adamw")}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clients_of_different_runs_have_rates_and_norms_of_their_own(name: str) -> None:
    rates, norms = (0.09, 0.03, 0.06), (math.inf, 1.0, 0.4)
    share = torch.tensor([rate / 0.09 for rate in rates], dtype=torch.float64)
    stepped = stacked(name, (4, 4, 2), Recipe(0.09, torch.tensor(norms, dtype=torch.float64), share))
    for k, (rate, largest, count) in enumerate(zip(rates, norms, (4, 4, 2), strict=True)):
        for key, value in plain(name, k, count, rate, largest).items():
            torch.testing.assert_close(stepped[key][k], value, rtol=1e-10, atol=1e-10)


def test_clipping_shortens_long_gradients_and_leaves_short_ones_alone() -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), torch.tensor([[4.0], [0.4], [0.0]]), None]
    clip(gradients, 1.0)  # the norms over both tensors are 5, 0.5 and 0
    torch.testing.assert_close(gradients[0], torch.tensor([[0.6, 0.0], [0.3, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(gradients[1], torch.tensor([[0.8], [0.4], [0.0]]))


def test_each_client_is_clipped_separately() -> None:
    gradients = [torch.tensor([[30.0], [2.0]])]
    clip(gradients, torch.tensor([10.0, 1.0]))
    assert gradients[0].tolist() == [[10.0], [1.0]]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("largest", [None, 0.8])
def test_a_client_with_factors_and_clipping_is_a_plain_training_loop(name: str, largest: float | None) -> None:
    method = tiny.plugins().classes["method"]["fedvpt"](prompt_length=2, prompt_lr_scale=5.0)
    recipe = local(name, clip=largest).model_dump(exclude={"epochs", "batch_size", "lr"})
    small = tiny.mini_run(method, lr=0.05, **recipe)
    updates = small.round((2, 4))
    for row, k in enumerate(updates.clients.tolist()):
        p = {n: v[row].clone().requires_grad_() for n, v in updates.received.items()}
        groups = [{"params": [v], "lr": 0.05 * (5.0 if n == "prompt" else 1.0)} for n, v in p.items()]
        optimizer = OPTIMIZERS[name](groups, 0.05)
        for batch in laws.batches(small.train[k], 4, 2, 0, 1, 0, k):
            images, y = small.model.images.batch(torch.from_numpy(batch.index)), small.model.labels[batch.index]
            cls = small.model.backbone.vit.norm(pass_with_prompt(small.model.backbone.vit, images, p["prompt"]))[:, 0]
            optimizer.zero_grad()
            F.cross_entropy(cls @ p["head.weight"].T + p["head.bias"], y).backward()
            norm = math.sqrt(sum(float((v.grad**2).sum()) for v in p.values()))
            if largest is not None and norm > largest:
                for v in p.values():
                    v.grad *= largest / norm
            optimizer.step()
        for n, value in p.items():
            torch.testing.assert_close(updates.updated[n][row], value.detach(), rtol=1e-8, atol=1e-9)


def pass_with_prompt(vit: Any, images: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    x = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
    return vit.blocks(torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1:]], 1))


def test_augmented_images_are_shifted_and_mirrored_as_drawn() -> None:
    size = 16
    raw = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    images = Images(raw, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.5), torch.device("cpu"), torch.float64)
    index, flip = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])
    shift = torch.tensor([[0.99, -0.99], [0.2, 0.3], [-0.8, 0.0]], dtype=torch.float32)
    moves = [(2, -2), (0, 1), (-2, 0)]  # an eighth of 16 px is 2 px; 0.4 and 0.6 px round to 0 and 1, 1.6 px to 2
    for augment in ("none", "flip", "crop_flip"):
        augmented = images.batch(index, augment, flip, shift).permute(0, 2, 3, 1).numpy()
        for row, i in enumerate(index.tolist()):
            for r, c in itertools.product((0, 5, size - 1), (0, 6, size - 1)):
                column = size - 1 - c if augment != "none" and bool(flip[row]) else c
                down, right = moves[row] if augment == "crop_flip" else (0, 0)
                pixel = raw[i, min(max(r + down, 0), size - 1), min(max(column + right, 0), size - 1)]
                expected = (pixel / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.5])
                np.testing.assert_allclose(augmented[row, r, c], expected, rtol=1e-12, atol=1e-12)
