"""Reads published ViT checkpoints: safetensors or torch files, with prefixes, Hugging Face names or a decoder's tensors.

Code in files never runs: torch files are opened with ``weights_only=True``.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Parts of a published model that a frozen backbone does not need: classifiers, poolers, MAE's decoder, mask tokens.
NOT_BACKBONE = ("head.", "head_dist.", "pre_logits.", "classifier.", "pooler.", "decoder_", "decoder.", "mask_token")
CLS, PATCHES = (
    "cls_token",
    r"patch_embed\.proj\.weight",
)  # whose names show the prefix; the latter in a model without CLS
PREFERRED = "teacher"  # if a checkpoint holds several models, the model that DINO evaluates
HUGGING_FACE = (  # (name in transformers' ViT and DINOv2, name in timm)
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"encoder\.layer\.(\d+)\.(layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.(layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.(intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.(output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.", "norm."),
)


class WeightsError(ValueError):
    """Weights cannot be used. The message names the file, and the key, prefix or tensor that does not fit."""


def load_weights(path: Path, vit: VisionTransformer | Eva) -> None:
    """Load the checkpoint `path` into `vit`. Raises WeightsError."""
    vit.load_state_dict(fitting_state(path, vit))
    refuse_broken(vit.state_dict(), str(path))


def fitting_state(path: Path, vit: VisionTransformer | Eva, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of the checkpoint `path` under the names of `vit`, position embeddings resampled to its size.

    On the device ``meta`` only names and shapes are read. Raises WeightsError if the checkpoint does not fit.
    """
    marker = PATCHES if vit.cls_token is None else CLS
    state = timm_names(_backbone_part(read_tensors(path, device), path, marker))
    state = {name: value.float() for name, value in state.items() if not name.startswith(NOT_BACKBONE)}
    try:
        if isinstance(vit, Eva):
            state = eva.checkpoint_filter_fn(state, vit)
        else:
            state = vision_transformer.checkpoint_filter_fn(state, vit)
    except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError, IndexError) as error:
        raise WeightsError(f"{path} does not fit this architecture: {type(error).__name__}: {error}") from error
    wanted = vit.state_dict()
    wrong = [
        f"{name} {list(value.shape)} instead of {list(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if wrong or missing or surplus:
        raise WeightsError(
            f"{path} does not fit this architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(surplus)} unknown {surplus[:3]}, {len(wrong)} of another shape {wrong[:3]}"
        )
    return state


def refuse_broken(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError if a tensor holds NaN or infinite values."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise WeightsError(f"{source}: the tensor {name} holds {count:,} values that are NaN or infinite")


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of a file by name. Raises WeightsError."""
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path, device)
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if device == "meta":
                return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _read_torch(path: Path, device: str) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of unusual pickles and refuses those that it cannot read
            content: Any = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable file of tensors ({reason[:200]})") from error
    tensors = dict(_tensors(content, ""))
    if not tensors:
        raise WeightsError(f"{path}: expected a mapping of tensors, found {type(content).__name__}")
    return tensors


def _tensors(content: Any, prefix: str) -> Any:
    """(dotted name, tensor) of all tensors in nested mappings."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping) and prefix.count(".") < 20:
        for name, value in content.items():
            if not str(name).startswith("optimizer"):
                yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))


def has_tensor(path: Path, name: str) -> bool:
    """Whether the file holds a tensor of this name, after any prefix. Raises WeightsError if it cannot be read."""
    return any(f".{key}".endswith(f".{name}") for key in read_tensors(path, "meta"))


def _backbone_part(state: Mapping[str, Tensor], path: Path, marker: str = CLS) -> dict[str, Tensor]:
    """The tensors of the ViT without the prefix of their names, such as ``module.`` or ``teacher.backbone.``.

    The name of the tensor `marker` shows the prefix. Raises WeightsError if there is none, or more than one model.
    """
    pattern = re.compile(rf"((?:.*\.)?){marker}")
    prefixes = list(dict.fromkeys(match[1] for match in map(pattern.fullmatch, state) if match))
    prefixes = [prefix.removesuffix("embeddings.") for prefix in prefixes]
    if len(prefixes) > 1:
        preferred = [prefix for prefix in prefixes if PREFERRED in prefix.split(".")]
        prefixes = preferred if len(preferred) == 1 else prefixes
    if len(prefixes) != 1:
        groups = sorted({name.split(".")[0] for name in state})
        content = (
            f"several models, with the prefixes {', '.join(map(repr, prefixes))}; keep one of them in the file"
            if prefixes
            else f"no {marker.replace(chr(92), '')}; its {len(state)} keys begin with {', '.join(groups[:8])}"
        )
        kind = " with a CLS token" if marker == CLS else ""
        raise WeightsError(f"{path}: expected the weights of one ViT{kind}, found {content}")
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with timm's names in place of Hugging Face's; query, key and value become one tensor."""
    if not any(name.startswith("embeddings.") for name in state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in HUGGING_FACE:
            new, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        renamed[new] = value
    joined: dict[str, Tensor] = {}
    for name, value in renamed.items():
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)query\.(weight|bias)", name):
            block, kind = match.groups()
            parts = [renamed.get(f"{block}{part}.{kind}") for part in ("query", "key", "value")]
            if all(part is not None for part in parts):
                joined[f"{block}qkv.{kind}"] = torch.cat([part for part in parts if part is not None])
                continue
        if re.fullmatch(r"blocks\.\d+\.attn\.(key|value)\.(weight|bias)", name):
            continue
        joined[name] = value
    return joined
