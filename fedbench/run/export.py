"""A finished run's model as files that need no fedbench: tensors, a description, and a loader that needs timm alone.

A method can be loaded in plain timm if its scores are linear in the feature that timm's head reads, it leaves the pixels as
they are, and it joins no keys and values. Prompts that are the same for every image are tensors. For others, the loader holds
the operations of the method's `prompts`. Replaced backbone weights (`lora`, `full_finetune`) are exported as they end. The
tensors of every other method are exported as well, without a loader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import Tensor, nn

from fedbench.base.storage import write_atomically
from fedbench.method import log_prior
from fedbench.plan.config import BackboneConfig
from fedbench.run import loaders
from fedbench.run.experiment import Experiment
from fedbench.run.prompt_trace import PromptTrace, traced
from fedbench.run.stacked import Stacked
from fedbench.vit import nano, two_towers

TENSORS, ABOUT, LOADER, README = "model.safetensors", "model.json", "load_model.py", "README.md"
TOLERANCE = 1e-4  # relative, of scores that are to be linear


class ExportError(ValueError):
    """A run's model cannot be exported. The message says why."""


@dataclass(frozen=True)
class Model:
    """One client's or the server's final model: its tensors, and what the loader needs, or why there is no loader."""

    tensors: dict[str, Tensor]
    # {block: [(tensor or slot, place of its first token, tokens that it replaces)]}
    prompts: dict[str, list[tuple[str, int, int]]]
    no_loader: str = ""
    traces: dict[int, PromptTrace] = field(default_factory=dict)  # by block, if prompts depend on the image
    query_blocks: int = 0  # blocks whose output is the `query` of the traces; 0: they do not read it


def final_model(experiment: Experiment, client: int | None) -> Model:
    """The model with which `client` is evaluated, or the server's, which an unknown client would use.

    Raises ExportError if clients have models of their own and none is named, or if there is no such client.
    """
    server, method = experiment.server, experiment.model.method
    clients = experiment.run.clients.number
    if client is None:
        values = server.unseen_client()
        if values is None:
            raise ExportError(
                f"each client of {experiment.facts.label} has a model of its own; name one: --client 0..{clients - 1}"
            )
    elif not 0 <= client < clients:
        raise ExportError(f"there is no client {client}; the run has the clients 0..{clients - 1}")
    else:
        values = server.send(torch.tensor([client]))
    p = {name: value[0] for name, value in values.items()} | server.read()
    stored = {f"values.{name}": value for name, value in p.items()}
    if method.finetune_epochs:
        return Model(stored, {}, "clients fine-tune it before evaluation (finetune_epochs)")
    try:
        weights = _backbone_weights(experiment, p)
        prompts = _prompts(experiment, p)
        head = _head(experiment, p)
        if prompts is None or method.uses_query:  # a choice by the query may be the same for a few images
            return _with_traces(experiment, p, stored | weights | head)
    except _NotPlain as reason:
        return Model(stored, {}, str(reason))
    tensors = {name: value for _, name, value, *_ in prompts}
    places: dict[str, list[tuple[str, int, int]]] = {}
    for layer, name, _, at, dropped in prompts:
        places.setdefault(str(layer), []).append((name, at, dropped))
    return Model(stored | weights | tensors | head, places)


def _with_traces(experiment: Experiment, p: Stacked, tensors: dict[str, Tensor]) -> Model:
    """The model with `tensors`, whose prompts depend on the image. Raises _NotPlain."""
    method, vit = experiment.model.method, experiment.model.backbone
    cls, query = (value[:1] for value in _random_features(experiment))
    try:
        traces = {layer: traced(method, layer, p, cls, query) for layer in method.layers(vit.depth)}
    except Exception as error:
        raise _NotPlain(f"its prompts depend on the image, and cannot be traced: {error}") from error
    lengths: dict[str, int] = {}
    places = {
        str(layer): [
            (slot, *_place(lengths, slot, length, vit.readout.first_slot)) for slot, length in t.lengths.items()
        ]
        for layer, t in traces.items()
    }
    constants = {f"values.{name}": value for trace in traces.values() for name, value in trace.constants.items()}
    blocks = vit.depth if method.query_after is None else method.query_after + 1
    if blocks < vit.depth and vit.readout.pool == "map":
        raise _NotPlain("its prompts depend on the image after a block whose output attention pooling does not fit")
    return Model(tensors | constants, places, "", traces, blocks if method.uses_query else 0)


def _place(lengths: dict[str, int], slot: str, length: int, first: int) -> tuple[int, int]:
    """The place of a slot's first token and the tokens that it replaces; notes the slot's new length in `lengths`."""
    slots = list(lengths)
    before = slots[: slots.index(slot)] if slot in lengths else slots
    place = first + sum(lengths[name] for name in before)  # behind CLS and the earlier slots
    replaced, lengths[slot] = lengths.get(slot, 0), length
    return place, replaced


def _random_features(experiment: Experiment) -> list[Tensor]:
    """Three CLS tokens and three queries [3, D]."""
    draw, width = torch.Generator().manual_seed(0), experiment.model.backbone.width
    return [torch.randn(3, width, generator=draw).to(experiment.model.images.dtype) for _ in range(2)]


class _NotPlain(Exception):
    """Why a method cannot be loaded in plain timm."""


def _backbone_weights(experiment: Experiment, p: Stacked) -> dict[str, Tensor]:
    """The backbone's tensors that timm does not have: replaced ones, and all of an embedded or local checkpoint."""
    method, run, vit = experiment.model.method, experiment.run, experiment.model.backbone.vit
    if experiment.model.text is not None:
        raise _NotPlain("its scores read texts of the class names")
    if two_towers.is_two_towers(run.backbone.name):
        raise _NotPlain("its backbone is the image tower of a vision-language model")
    if method.pixels is not None:
        raise _NotPlain("it changes the pixels of its input")
    if method.prefixes is not None:
        raise _NotPlain("it joins keys and values of attention")
    weights = {}
    if _holds_weights(run.backbone):
        weights = {f"vit.{name}": value for name, value in vit.state_dict().items()}
    if method.backbone_weights is not None:
        replaced = method.backbone_weights(p, experiment.model.frozen)
        weights |= {name: value.detach() for name, value in replaced.items()}  # named vit.<name> already
    return weights


def _prompts(experiment: Experiment, p: Stacked) -> list[tuple[int, str, Tensor, int, int]] | None:
    """(block, tensor's name, tensor [P, D], place of its first token, tokens that it replaces), in order.

    None if prompts depend on the image.
    """
    method, vit = experiment.model.method, experiment.model.backbone
    cls, query = _random_features(experiment)
    lengths: dict[str, int] = {}
    prompts = []
    for layer in method.layers(vit.depth):
        for slot, value in method.prompts(layer, p, cls, query).items():
            value = value.detach()
            if not torch.equal(value[0], value[1]) or not torch.equal(value[0], value[2]):
                return None
            place, dropped = _place(lengths, slot, value.shape[1], vit.readout.first_slot)
            prompts.append((layer, f"prompts.{layer}.{slot}", value[0], place, dropped))
    return prompts


def _head(experiment: Experiment, p: Stacked) -> dict[str, Tensor]:
    """The weights and biases of the scores, found by scoring unit vectors; with the log class prior if evaluation adds it."""
    method, width = experiment.model.method, experiment.model.backbone.width
    if method.reads_slots:
        raise _NotPlain("its scores read prompt tokens, not the CLS feature alone")
    if method.reads_patches:
        raise _NotPlain("its scores or losses read patch tokens, not the CLS feature alone")
    dtype = experiment.model.images.dtype
    draw = torch.randn(4, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = method.logits(p, {"cls": torch.zeros(1, width, dtype=dtype)})[0].detach()
    weight = (method.logits(p, {"cls": torch.eye(width, dtype=dtype)}).detach() - bias).T
    scores = method.logits(p, {"cls": draw}).detach()
    if not (draw @ weight.T + bias - scores).abs().max() <= TOLERANCE * scores.abs().max():
        raise _NotPlain("its scores are not linear in the CLS feature")
    if method.adds_prior_in_evaluation:
        bias = bias + log_prior(p["prior"])
    return {"head.weight": weight, "head.bias": bias}


def write(experiment: Experiment, model: Model, folder: Path, client: int | None, accuracy: float | None) -> list[str]:
    """Write the files of `model` into `folder`, and return their names. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    run, vit = experiment.run, experiment.model.backbone
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in model.tensors.items()}
    save_file(plain, folder / TENSORS)
    about = {
        "timm": _timm_model(run.backbone, vit.vit),
        "prompts": model.prompts,
        "mean": list(vit.mean),
        "std": list(vit.std),
        "image_size": vit.image_size,
        "classes": list(experiment.samples.class_names),
        "client": client,
        "run": experiment.facts.run,
    }
    if model.traces:
        about["query_blocks"] = model.query_blocks
    texts = {ABOUT: json.dumps(about, indent=2), README: _readme(experiment, model, client, accuracy)}
    if not model.no_loader:
        texts[LOADER] = _loader(model)
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [TENSORS, *texts]


def _loader(model: Model) -> str:
    """The text of the loader."""
    if not model.traces:
        return loaders.SAME_FOR_ALL
    table = "PROMPTS = {" + ", ".join(f"{layer}: {trace.name}" for layer, trace in model.traces.items()) + "}"
    return "\n\n".join([loaders.FOR_EACH_IMAGE, *(f"{trace.text}\n" for trace in model.traces.values()), f"{table}\n"])


def _holds_weights(backbone: BackboneConfig) -> bool:
    """Whether the exported files hold the backbone's weights; if not, timm downloads them."""
    return backbone.name in nano.NAMES or backbone.weights is not None or backbone.pool is not None


def _timm_model(backbone: BackboneConfig, vit: Any) -> dict[str, Any]:
    """The arguments of timm.create_model for the model `vit` that the run has made of `backbone`."""
    made: dict[str, Any] = {"model_name": backbone.name, "pretrained": not _holds_weights(backbone), "num_classes": 0}
    if backbone.name in nano.NAMES:
        made |= nano.ARCHITECTURE | {"model_name": "vit_tiny_patch16_224"}
    elif backbone.image_size is not None:
        made["img_size"] = backbone.image_size
    if backbone.pool is not None:
        norm = "use_fc_norm" if isinstance(vit, Eva) else "fc_norm"
        made |= {"global_pool": backbone.pool, norm: not isinstance(vit.fc_norm, nn.Identity)}
    return made


def _readme(experiment: Experiment, model: Model, client: int | None, accuracy: float | None) -> str:
    facts, vit = experiment.facts, experiment.model.backbone
    owner = "the server's model" if client is None else f"the model of client {client}"
    lines = [
        f"# {facts.label} on {facts.dataset}",
        "",
        f"This is {owner} after {facts.rounds} rounds of the run `{facts.run}`, exported by fedbench.",
        ""
        if accuracy is None
        else f"Its accuracy on {'the global' if client is None else 'its own'} test set: {accuracy:.4f}",
        "",
        f"* `{TENSORS}`: the method's values under `values.<name>`"
        + ("" if model.no_loader else ", and the tensors of the loader under `prompts.`, `head.` and `vit.`")
        + ".",
        f"* `{ABOUT}`: the backbone, the image size and the normalisation.",
    ]
    if model.no_loader:
        lines += ["", f"There is no loader for plain timm: {model.no_loader}."]
    else:
        lines += [
            f"* `{LOADER}`: `load()` returns the model; it needs torch, timm and safetensors."
            + (" The prompts depend on the image; its last functions make them." if model.traces else ""),
            "",
            f"Images enter with {vit.image_size} x {vit.image_size} pixels, as `(pixels / 255 - mean) / std` with mean "
            f"{tuple(vit.mean)} and std {tuple(vit.std)}. Images of another size are resized with bicubic interpolation and "
            "antialiasing.",
        ]
    return "\n".join(lines) + "\n"
