"""PromptFL on a frozen open_clip model in plain PyTorch, computed as the authors' code and FLiP compute it.

Both train CoOp's `CustomCLIP`: each step runs the image encoder on its images, and the text encoder on all positions of all
classes. The modules are open_clip's own. Neither code is copied here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.peers.task import Task, Values

NAME = "peers-clip"  # of the model in open_clip's list


def register(sizes: Mapping[str, Any], folder: Path) -> None:
    """Add a model of these `sizes` to open_clip's list, with a configuration file in `folder`."""
    (folder / f"{NAME}.json").write_text(json.dumps(dict(sizes)))
    open_clip.add_model_config(folder / f"{NAME}.json")


def clip(sizes: Mapping[str, Any], folder: Path, weights: Path | None = None) -> Any:
    """open_clip's model of these `sizes`, with random weights or those of a file."""
    register(sizes, folder)
    model = open_clip.create_model(NAME)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


class PromptedClip(nn.Module):
    """Context vectors between the start token and the class names; scores are scaled cosines."""

    def __init__(self, model: Any, names: list[str], context: NDArray[np.float32]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.context = nn.Parameter(torch.from_numpy(context.copy()))  # [P, D]
        words = " ".join(["X"] * len(context))  # placeholders, whose embeddings the contexts replace
        texts = [f"{words} {name.replace('_', ' ')}." for name in names]
        tokens = open_clip.get_tokenizer(NAME)(texts)  # [C, 77]
        embedding = model.token_embedding(tokens)
        self.eot: Tensor = tokens.argmax(-1)
        self.register_buffer("prefix", embedding[:, :1])
        self.register_buffer("suffix", embedding[:, 1 + len(context) :])
        self.register_buffer("mean", torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None] * 255)

    def texts(self) -> Tensor:
        """Features [C, E] of the class names behind the contexts, of length 1."""
        contexts = self.context.expand(len(self.eot), -1, -1)
        x = torch.cat([self.get_buffer("prefix"), contexts, self.get_buffer("suffix")], 1)
        x = self.model.transformer(x + self.model.positional_embedding, attn_mask=self.model.attn_mask)
        x = self.model.ln_final(x)
        return F.normalize(x[torch.arange(len(x)), self.eot] @ self.model.text_projection, dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores [n, C] of images uint8 [n, 3, S, S]."""
        normalised = (pixels.float() - self.get_buffer("mean")) / self.get_buffer("std")
        image = F.normalize(self.model.visual(normalised), dim=-1)
        scores: Tensor = self.model.logit_scale.exp() * image @ self.texts().t()
        return scores

    @torch.no_grad()
    def set(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Set the contexts."""
        self.context.copy_(torch.from_numpy(values["context"]))

    def values(self) -> Values:
        """A copy of the contexts."""
        return {"context": self.context.detach().numpy().copy()}


def make(task: Task, folder: Path) -> PromptedClip:
    """The model of a task, at its initial values."""
    with np.load(folder / "data.npz") as data:
        names = data["class_names"].tolist()
    return PromptedClip(clip(task.case["architecture"], folder, task.weights), names, task.start["context"])
