"""Vision-language models: their names, sizes and weights. The image tower is a backbone; `fedbench.text` uses the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from fedbench.vit import nano
from fedbench.vit.weights import WeightsError, read_tensors, refuse_broken

MARK = "visual.class_embedding"  # a tensor of every image tower of open_clip
EMBEDDED, LOCAL, OPEN_CLIP = "clip_nano", "two_towers", "open_clip/"
FOLDER = Path(__file__).parents[1] / "text" / EMBEDDED
PARTS = ("visual.", "visual_projection", "text.", "logit_scale")  # what the names of a model's tensors begin with
INSTALL = "open_clip models need the package open_clip_torch, which is not installed: pip install 'fedbench[clip]'"


@dataclass(frozen=True)
class Sizes:
    """The architecture of a vision-language model.

    ``vision`` and ``text`` are the arguments of timm's `VisionTransformer` and of `fedbench.text.tower.TextTower`.
    ``activation``: of both towers, ``gelu`` or ``quick_gelu``. ``tokenizer``: ``bytes``, ``nano`` or the name of an open_clip
    model. ``template`` makes a text from a class name.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    mean: tuple[float, ...] = nano.MEAN
    std: tuple[float, ...] = nano.STD
    activation: str = "gelu"
    tokenizer: str = "bytes"
    template: str = "{}"


def is_two_towers(name: str) -> bool:
    """Whether the backbone `name` is the image tower of a vision-language model."""
    return name in (EMBEDDED, LOCAL) or name.startswith(OPEN_CLIP)


def sizes(name: str, weights: Path | None = None) -> Sizes:
    """The sizes of the model `name`. Raises WeightsError if there is no such model, file or package."""
    if name == EMBEDDED:
        try:
            config = json.loads((FOLDER / f"{EMBEDDED}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{EMBEDDED} is not installed completely: {error}") from error
        names = ("vocab_size", "context_length", "width", "heads", "layers", "embed_dim")
        text = {key: config[key] for key in names}
        return Sizes(nano.ARCHITECTURE, text, tokenizer="nano", template=config.get("template", "{}"))
    if name == LOCAL:
        return _local_sizes(weights)
    model, tag = _open_clip_names(name)
    made = _open_clip_sizes(model, tag)
    if weights is None and tag not in (tags := _open_clip().list_pretrained_tags_by_model(model)):
        example = f"{OPEN_CLIP}{model}.{(*tags, 'TAG')[0]}"
        raise WeightsError(f"{name}: add the tag of its weights, such as {example}, or `weights:`")
    return made


def image_tower(vision: Mapping[str, Any], activation: str = "gelu") -> VisionTransformer:
    """The image tower with random weights, on the current default device."""
    options: dict[str, Any] = dict(vision)
    if vision.get("pre_norm"):  # CLIP's own form, with torch's epsilon
        options["norm_layer"] = nn.LayerNorm
    if activation == "quick_gelu":
        options["act_layer"] = QuickGELU
    return VisionTransformer(**options)


def tensors(name: str, weights: Path | None = None) -> dict[str, Tensor]:
    """All tensors of the model in float32, under the names of `PARTS`.

    ``visual.*`` has timm's names, ``visual_projection`` is [D, E], ``text.*`` has those of `TextTower`.
    Raises WeightsError if they cannot be read, or hold NaN or infinite values.
    """
    if name.startswith(OPEN_CLIP):
        state = _open_clip_tensors(name, weights)
    else:
        state = read_tensors(weights or FOLDER / f"{EMBEDDED}.fp16.safetensors")
    state = {key: value.float() for key, value in state.items()}
    source = str(weights or name)
    if missing := [part for part in PARTS if not any(key.startswith(part) for key in state)]:
        raise WeightsError(f"{source}: not a vision-language model of ours; no tensor begins with {missing[0]!r}")
    refuse_broken(state, source)
    return state


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `module`. Raises WeightsError if names or shapes differ."""
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{source} does not fit its sizes: {reason}") from error


def write(path: Path, sizes: Sizes, state: Mapping[str, Tensor]) -> None:
    """Write a model to one file, for ``backbone: {name: two_towers, weights: path}``."""
    config = json.dumps(dataclasses.asdict(sizes))
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"two_towers": config})


def _local_sizes(weights: Path | None) -> Sizes:
    if weights is None:
        raise WeightsError(f"{LOCAL} needs `weights:`, a file that `fedbench.vit.two_towers.write` made")
    try:
        with safe_open(weights, "pt") as file:
            config = json.loads((file.metadata() or {})["two_towers"])
        return Sizes(**config | {key: tuple(config[key]) for key in ("mean", "std")})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{weights}: no file of `fedbench.vit.two_towers.write` ({error})") from error


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise WeightsError(INSTALL) from error
    return open_clip


def _open_clip_names(name: str) -> tuple[str, str]:
    """The model and the tag of its weights in ``open_clip/MODEL.TAG``; the tag may be empty."""
    model, _, tag = name.removeprefix(OPEN_CLIP).partition(".")
    return model, tag


def _open_clip_sizes(model: str, tag: str) -> Sizes:
    open_clip = _open_clip()
    config = open_clip.get_model_config(model)
    if config is None:
        names = [name for name in open_clip.list_models() if name.startswith(model[:5])] or ["ViT-B-16", "ViT-B-32"]
        raise WeightsError(f"no open_clip model is called {model!r}; near: {', '.join(names[:8])}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision.get("layers"), int) or vision.get("timm_model_name") or text.get("hf_model_name"):
        raise WeightsError(f"open_clip's {model!r} is not a ViT with CLIP's text transformer, such as ViT-B-16")
    published = (open_clip.get_pretrained_cfg(model, tag) or {}) if tag else {}
    quick = config.get("quick_gelu", False) or published.get("quick_gelu", False)
    head = vision.get("head_width", 64)
    return Sizes(
        vision={
            "img_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "embed_dim": vision["width"],
            "depth": vision["layers"],
            "num_heads": vision["width"] // head,
            "mlp_ratio": vision.get("mlp_ratio", 4.0),
            "pre_norm": True,
            "num_classes": 0,
        },
        text={key: text[key] for key in ("vocab_size", "context_length", "width", "heads", "layers")}
        | {"embed_dim": config["embed_dim"]},
        mean=tuple(published.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(published.get("std", open_clip.OPENAI_DATASET_STD)),
        activation="quick_gelu" if quick else "gelu",
        tokenizer=model,
        template="a photo of a {}.",
    )


def _open_clip_tensors(name: str, weights: Path | None) -> dict[str, Tensor]:
    """The tensors of an open_clip model under our names, from the file `weights` or from open_clip's download."""
    model, tag = _open_clip_names(name)
    open_clip = _open_clip()
    if weights is not None:
        state = read_tensors(weights)
        prefix = next((key.removesuffix(MARK) for key in state if key.endswith(MARK)), "")
        state = part(state, prefix)  # such as "state_dict.module."
    else:
        state = open_clip.create_model(model, pretrained=tag).state_dict()
    architecture = sizes(name, weights)
    try:
        with torch.device("meta"):
            vit = image_tower(architecture.vision, architecture.activation)
        visual = checkpoint_filter_fn({k: v for k, v in state.items() if k.startswith("visual.")}, vit)
        made = {f"visual.{k}": v for k, v in visual.items() if not k.startswith("head.")}
        made["visual_projection"] = state["visual.proj"]
    except (KeyError, RuntimeError, AttributeError) as error:
        raise WeightsError(
            f"{weights or name} is not open_clip's {model!r}: {type(error).__name__}: {error}"
        ) from error
    text = part(state, "text.") or {k: v for k, v in state.items() if not k.startswith(("visual.", "logit_"))}
    made |= {f"text.{k}": v for k, v in text.items() if k != "attn_mask"}
    return made | {"logit_scale": state["logit_scale"]}
