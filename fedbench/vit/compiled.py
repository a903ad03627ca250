"""Blocks of the frozen backbone under torch.compile, in passes padded to one size so that nothing is recompiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.vit.backbone import BackboneError

BACKEND = "inductor"
# Compiled forms per function. Beyond the limit torch silently stops compiling. A process may run many methods, each with its
# own number of tokens, with and without gradients.
FORMS = 256


class CompiledBlocks:
    """Calls ``part(block, x [N, T, D], ...) -> [N, ...]`` in compiled form, with N padded to a multiple of `images`.

    Without padding, the last pass of a batch, which is smaller, would need another compiled form. All blocks of a backbone
    share a form, since weights are inputs.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._parts: dict[Callable[..., Tensor], Any] = {}
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, FORMS)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * FORMS)

    def __call__(self, part: Callable[..., Tensor], block: Any, x: Tensor, *more: Any) -> Tensor:
        """``part(block, x, *more)`` up to rounding. Raises BackboneError."""
        if part not in self._parts:
            self._parts[part] = torch.compile(part, dynamic=False, backend=BACKEND)
        count = len(x)
        padded = F.pad(x, (0, 0, 0, 0, 0, -count % self.images))
        try:
            result: Tensor = self._parts[part](block, padded, *more)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            why = " ".join(str(error).split("Set TORCHDYNAMO_VERBOSE")[0].split())
            raise BackboneError(f"torch.compile fails on this machine, so leave machine.compile out: {why}") from error
        return result[:count]
