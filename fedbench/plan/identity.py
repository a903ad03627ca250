"""The identity of a run: what names it, and which runs share a training or can be trained together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from fedbench.plan.config import Block, RunConfig

# Keys in which runs with one and the same training may differ.
EVALUATION_ONLY = ("evaluate_every", "test_data", "metrics")
# Keys in which runs that are trained together as rows of one graph may differ.
PACKED_FREELY = ("seed", "seeds", "partition", "clients", "rounds")
CLIENT_RECIPE = ("lr", "lr_decay", "schedule", "warmup_rounds", "clip")  # keys of `local` in which they may differ
# Keys that came after the first published runs. With its default value, such a key is not in a run's identity, so that
# earlier runs keep their names.
LATER_KEYS = {
    "backbone": ("template", "pool"),
    "local": ("schedule", "warmup_rounds", "label_smoothing"),
    "clients": ("dropout", "stragglers", "available", "draw", "candidates", "shots", "novel"),
}


def identity_of(run: RunConfig) -> dict[str, Any]:
    """The run's config without later keys that have their default values."""
    identity = run.model_dump()
    for block, names in LATER_KEYS.items():
        fields = _fields_of(block)
        for name in names:
            if identity[block][name] == fields[name].default:
                del identity[block][name]
    if not run.metrics:
        del identity["metrics"]
    return identity


def with_later_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's stored config, in which later keys that it does not name have their default values."""
    added = {}
    for block, names in LATER_KEYS.items():
        if isinstance(config.get(block), dict):
            fields = _fields_of(block)
            added[block] = {name: fields[name].default for name in names} | config[block]
    return {**config, **added}


def _fields_of(block: str) -> Mapping[str, FieldInfo]:
    model: type[Block] = RunConfig.model_fields[block].annotation  # type: ignore[assignment]
    return model.model_fields


def training_key(identity: Mapping[str, Any]) -> str:
    """A key that is equal for runs that differ only in evaluation, and so share one training; see `fedbench.run.pack`."""
    return json.dumps(_of_training(identity), sort_keys=True)


def _of_training(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's identity that affects its training. For the method, this is `Method.in_training`."""
    method = {name: value for name, value in identity["method"].items() if name != "finetune_epochs"}
    method["logit_prior"] = method.get("logit_prior") in ("train", "both")
    return {name: value for name, value in identity.items() if name not in EVALUATION_ONLY} | {"method": method}


def pack_key(identity: Mapping[str, Any]) -> str:
    """A key that is equal for runs that can be trained together; see `fedbench.run.pack`."""
    fixed = {name: value for name, value in _of_training(identity).items() if name not in PACKED_FREELY}
    fixed["aggregation"] = identity["aggregation"]["name"]  # without its options, which act at the server only
    fixed["local"] = {name: value for name, value in identity["local"].items() if name not in CLIENT_RECIPE}
    return json.dumps(fixed, sort_keys=True)
