"""Functions that many methods share: the linear head, prompt tokens, class priors and class sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.method.param import Home, Param, Values
from fedbench.method.task import Task


def linear_head(task: Task, home: Home = "shared", trained: bool = True) -> dict[str, Param]:
    """A linear classifier: weight [C, D] ~ N(0, 0.02^2), bias [C] = 0."""
    return {
        "head.weight": Param(task.normal("head.weight", task.num_classes, task.width, std=0.02), home, trained),
        "head.bias": Param(torch.zeros(task.num_classes), home, trained),
    }


def cosine_logits(p: Values, out: Values, text: Tensor) -> Tensor:
    """CLIP's class scores [B, C]: cosines of the image features ``out["image"]`` [B, E] and `text` [C, E], scaled."""
    scores: Tensor = p["logit_scale"] * out["image"] @ text.mT
    return scores


def tokens(prompt: Tensor, cls: Tensor) -> Tensor:
    """The same prompt [P, D] for every sample of `cls` [B, D]: [B, P, D]."""
    return prompt.expand(len(cls), *prompt.shape)


def log_prior(prior: Tensor, smoothing: float = 1e-6) -> Tensor:
    """The log of a class prior [C], mixed with a little uniform mass so that the log of an absent class is finite."""
    return torch.log((1 - smoothing) * prior + smoothing / prior.shape[-1])


def class_sums(z: Tensor, y: Tensor, weight: Tensor, classes: int) -> dict[str, Tensor]:
    """Weighted sums [C, D] and counts [C] of z [B, D] by class."""
    hot = F.one_hot(y, classes).to(z) * weight[:, None]
    return {"sum": hot.T @ z, "count": hot.sum(0)}
