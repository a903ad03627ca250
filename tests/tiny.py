"""The miniature run of `fedbench.contract`, and every plug-in of the folders in all its variants."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from fedbench.contract.world import CLASSES, CLIENTS, SIZES, MiniRun, backbone, mini_run, variants
from fedbench.method import Aggregation, Method
from fedbench.plan.plugins import Kind, plugins

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
]


SMALL = {"fedperfix": {"bottleneck": 8}}  # fields of methods whose defaults are large for the miniature backbone


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
# Without prompts, so that nothing enters the first block.
METHODS["pep_fedpt-prompt_length=0"] = dataclasses.replace(METHODS["pep_fedpt"], prompt_length=0)
# Every method runs with FedAvg; every other aggregation with methods of each structure: all values shared, some local and
# trained in phases, some merged by the method itself.
STRUCTURES = ("fedvpt", "fedrep", "pep_fedpt-average=class_counts")
# Aggregations of the structure of another one: a merge of the clients' values, local values with a loss, a coded upload.
ALIKE = ("median", "trimmed_mean", "krum", "fednova", "feddyn", "quantized", "topk-error_feedback=False")
PAIRS = {
    f"{m}+{a}": (METHODS[m], AGGREGATIONS[a]) for m, a in itertools.product(STRUCTURES, AGGREGATIONS) if a != "fedavg"
}
