"""The identity of a run: what names it, and which runs share a training or can be trained together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbench.plan.config import RunConfig

# Keys in which runs with one and the same training may differ.
EVALUATION_ONLY = ("evaluate_every", "test_data", "metrics")
# Keys in which runs that are trained together as rows of one graph may differ.
PACKED_FREELY = ("seed", "seeds", "partition", "clients", "rounds")
CLIENT_RECIPE = ("lr", "lr_decay", "schedule", "warmup_rounds", "clip")  # keys of `local` in which they may differ
# Keys that came after the first published runs, with their default values. With that value, such a key is not in a run's
# identity, so that earlier runs keep their names.
LATER_KEYS: dict[str, dict[str, Any]] = {
    "backbone": {"template": None, "pool": None},
    "local": {"schedule": "exponential", "warmup_rounds": 5, "label_smoothing": 0.0},
    "clients": {
        "dropout": 0.0,
        "stragglers": 0.0,
        "available": None,
        "draw": "uniform",
        "candidates": None,
        "shots": None,
        "novel": 0.0,
    },
}


def identity_of(run: RunConfig) -> dict[str, Any]:
    """The run's config without later keys that have their default values."""
    identity = run.model_dump()
    for block, defaults in LATER_KEYS.items():
        for name, default in defaults.items():
            if identity[block][name] == default:
                del identity[block][name]
    if not run.metrics:
        del identity["metrics"]
    return identity


def with_later_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's stored config, in which later keys that it does not name have their default values."""
    blocks = {name: defaults for name, defaults in LATER_KEYS.items() if isinstance(config.get(name), dict)}
    return {**config, **{name: defaults | config[name] for name, defaults in blocks.items()}}


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
