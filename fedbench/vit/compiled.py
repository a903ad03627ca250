"""Blocks of the frozen backbone under torch.compile, in passes padded to a few sizes so that little is recompiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger("fedbench")

BACKEND = "inductor"
# The most compiled forms of a function. Beyond this limit torch silently stops compiling. A process may run many methods,
# each with its own number of tokens, with and without gradients.
FORMS = 256


class CompiledBlocks:
    """Calls a compiled ``part(block, x [N, T, D], ...) -> [N, ...]``, with N padded to `padded_size`.

    Each size has its own compiled form. All blocks of a backbone share a form, since weights are inputs. If the compiler fails,
    one line is logged, and the blocks run without it from then on.
    """

    def __init__(self, most: int) -> None:
        self.most = most  # images in a full pass, which is not padded
        self.error: str | None = None  # why the compiler failed
        self._parts: dict[Callable[..., Tensor], Any] = {}
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, FORMS)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * FORMS)

    def __call__(self, part: Callable[..., Tensor], block: Any, x: Tensor, *more: Any) -> Tensor:
        """``part(block, x, *more)`` up to rounding."""
        if self.error is not None:
            return part(block, x, *more)
        if part not in self._parts:
            self._parts[part] = torch.compile(part, dynamic=False, backend=BACKEND)
        count = len(x)
        missing = padded_size(count, self.most) - count
        try:
            result: Tensor = self._parts[part](block, F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x, *more)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            self.error = " ".join(str(error).split("Set TORCHDYNAMO_VERBOSE")[0].split())
            log.warning("torch.compile fails on this machine, so blocks run without it: %s", self.error)
            return part(block, x, *more)
        return result[:count] if missing else result


def padded_size(count: int, most: int) -> int:
    """The number of images to which a pass of `count` images is padded, where `most` images make a full pass.

    At least 8. Above, there are four sizes between a power of two and the next, so padding adds less than a quarter. A pass
    of up to `most` images is not padded beyond that.
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    size = max(8, -(-count // step) * step)
    return min(size, most) if count <= most else size
