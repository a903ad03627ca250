"""The miniature run of `fedbench.contract`, and every plug-in of the folders in all its variants."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

from fedbench.contract.world import CLASSES, CLIENTS, SIZES, MiniRun, backbone, mini_run, variants
from fedbench.method import Aggregation, Method
from fedbench.plan.plugins import Kind, plugins
from fedbench.text.tokenizers import BYTES_END
from fedbench.text.tower import TextTower
from fedbench.vit import two_towers

__all__ = [
    "AGGREGATIONS",
    "CLASSES",
    "CLIENTS",
    "METHODS",
    "PAIRS",
    "SIZES",
    "MiniRun",
    "backbone",
    "mini_run",
    "plugins",
    "write_two_towers",
]


# Fields of methods whose defaults are large for the miniature backbone.
SMALL = {"fedperfix": {"bottleneck": 8}, "pfedmoap": {"experts": 2}, "fedmgp": {"groups": 3}}


def write_two_towers(path: Path, image_size: int = 32) -> dict[str, str]:
    """Random weights of a small vision-language model in the file `path`; returns the block `backbone` that reads it."""
    torch.manual_seed(6)
    vision = {"img_size": image_size, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    text = {"vocab_size": BYTES_END + 1, "context_length": 40, "width": 16, "heads": 2, "layers": 2}
    sizes = two_towers.Sizes(vision, text | {"embed_dim": 24}, template="a {}")
    parts = {"visual.": two_towers.image_tower(vision), "text.": TextTower(**sizes.text)}
    state = {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    state = {
        name: torch.randn(value.shape) * 0.15 + ("norm" in name and "weight" in name) for name, value in state.items()
    }
    state |= {"visual_projection": torch.randn(32, 24), "logit_scale": torch.tensor(1.5)}
    two_towers.write(path, sizes, state)
    return {"name": two_towers.LOCAL, "weights": str(path)}


def every(kind: Kind) -> dict[str, Any]:
    """Every plug-in with its defaults, and once with each other value of each field that is a choice or a bool.

    Fields that every method has are varied where the core has different things to do: trained, mixed, without training.
    Those that every aggregation has are varied for FedAvg.
    """
    common = tuple(f"-{field.name}=" for base in (Method, Aggregation) for field in dataclasses.fields(base))
    return {
        key: plugin
        for name, cls in plugins().classes[kind].items()
        for key, plugin in variants(name, cls, **SMALL.get(name, {})).items()
        if name in ("fedvpt", "pep_fedpt", "fedncm", "fedavg") or not key.removeprefix(name).startswith(common)
    }


METHODS, AGGREGATIONS = every("method"), every("aggregation")
METHODS["fedvpt_text-context_length=2"] = dataclasses.replace(METHODS["fedvpt_text"], context_length=2)
# An iteration of FedOTP's plan is like any other.
METHODS |= {n: dataclasses.replace(m, iterations=2) for n, m in METHODS.items() if n.startswith("fedotp")}
# Without prompts, so that nothing enters the first block.
METHODS["pep_fedpt-prompt_length=0"] = dataclasses.replace(METHODS["pep_fedpt"], prompt_length=0)
# Every method runs with FedAvg; every other aggregation with methods of each structure: all values shared, some local and
# trained in phases, some merged by the method itself.
STRUCTURES = ("fedvpt", "fedrep", "pep_fedpt-average=class_counts")
# Aggregations of the structure of another one: a merge of the clients' values, local values with a loss, a coded upload.
ALIKE = ("median", "trimmed_mean", "krum", "fednova", "feddyn", "quantized", "sign", "topk-error_feedback=False")
PAIRS = {
    f"{m}+{a}": (METHODS[m], AGGREGATIONS[a]) for m, a in itertools.product(STRUCTURES, AGGREGATIONS) if a != "fedavg"
}
