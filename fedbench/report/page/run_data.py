"""The data of the runs for the page's script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedbench.report.evidence import Evidence
from fedbench.report.page.links import CellLinks
from fedbench.report.tables.metrics import PROVENANCE

# Keys of a run, short because a page may hold thousands of runs.
KEYS = {"n": "run", "s": "setting", "l": "label", "d": "seed", "st": "state", "w": "said", "k": "config"}


def as_json(evidence: Evidence, links: CellLinks, results: str, files: Mapping[str, Sequence[str]]) -> str:
    """The runs as JSON that cannot end its HTML element.

    results: the results folder, relative to the page; files: the names of each run's files.
    """
    curves = _curves(evidence.records)
    configs = {text: i for i, text in enumerate(dict.fromkeys(evidence.runs["config"]))}
    hashes = [name for name in PROVENANCE if name in evidence.runs]
    numbered = {"setting": links.settings, "label": links.labels, "config": configs}
    runs = []
    for row in evidence.runs[[*KEYS.values(), *hashes]].to_dict("records"):
        run = {
            key: numbered[column][row[column]] if column in numbered else row[column] for key, column in KEYS.items()
        }
        run |= {"d": int(row["seed"]), "c": curves.get(row["run"], []), "f": list(files.get(row["run"], ()))}
        runs.append(run | {"h": [None if pd.isna(row[name]) else str(row[name]) for name in hashes]})
    whole = {
        "results": results,
        "settings": list(links.settings),
        "labels": list(links.labels),
        "hashes": hashes,
        "configs": [_finite(json.loads(text)) for text in configs],
        "runs": runs,
    }
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ")


def _curves(records: pd.DataFrame) -> dict[str, list[list[float]]]:
    """{run: [[round, mean accuracy], ...]}, without rounds whose accuracy is not finite."""
    curves: dict[str, list[list[float]]] = {}
    if not records.empty:
        records = records[["run", "round", "mean_accuracy"]].sort_values(["run", "round"], kind="stable")
        records = records[np.isfinite(pd.to_numeric(records["mean_accuracy"]).astype(float))]
        for run, at, share in zip(records["run"], records["round"], records["mean_accuracy"], strict=True):
            curves.setdefault(str(run), []).append([int(at), round(float(share), 4)])
    return curves


def _finite(value: Any) -> Any:
    """`value` with words for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
