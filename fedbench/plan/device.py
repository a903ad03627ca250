"""The device and the precision of a run."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The device `name`; auto: the first GPU if there is one. Raises ValueError if this machine lacks the device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected auto, cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name!r} does not exist: torch finds no GPU")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"{name!r} does not exist: torch finds {count} GPU{'s' * (count > 1)}: cuda:0..{count - 1}")
    return device


def choose_dtype(precision: str) -> torch.dtype:
    """The type of weights and activations outside autocast."""
    return torch.float64 if precision == "float64" else torch.float32


def set_tf32(enabled: bool) -> None:
    """Allow or forbid a GPU to round float32 matrix products to 10 bits, for the whole process.

    By default torch rounds convolutions only. A run sets both, so its numbers do not depend on the default.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
