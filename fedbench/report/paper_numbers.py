"""Compares published numbers with this report's: the runs that repeat them, differences of numbers and of protocols."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fedbench.base.home import HOME
from fedbench.base.naming import flat
from fedbench.report.tables.metrics import METRIC

FOLDER = HOME / "reports" / "reference"
COLUMNS = ("source", "where", "method_there", "setting_there", "metric", "percent", "method", "dataset", "partition")


class ReferencesError(ValueError):
    """A file of published numbers cannot be used. The message names the line and the expected content."""


@dataclass(frozen=True)
class Published:
    """A number in a paper. method, dataset, partition: blocks that a run must contain to count as its repetition;
    protocol: {dotted path of the run: value there}, as far as the source states it."""

    source: str
    where: str
    method_there: str
    setting_there: str
    metric: str
    percent: float
    method: Mapping[str, Any]
    dataset: Mapping[str, Any]
    partition: Mapping[str, Any]
    protocol: Mapping[str, Any]

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether a run with this config repeats the number's method and setting."""
        return all(
            config.get(kind, {}).get(name) == value
            for kind, block in (("method", self.method), ("dataset", self.dataset), ("partition", self.partition))
            for name, value in block.items()
        )


def read(folder: Path = FOLDER) -> list[Published]:
    """All numbers of the CSV files in `folder`; columns besides `COLUMNS` are the protocol. Raises ReferencesError."""
    numbers = []
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="") as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            missing = set(COLUMNS) - set(rows.fieldnames or ())
            if missing:
                raise ReferencesError(f"{path}: the columns {', '.join(sorted(missing))} are missing")
            for number, row in enumerate(rows, 1):
                numbers.append(_published(row, f"{path}, row {number}"))
    return numbers


def _published(row: Mapping[str, str], where: str) -> Published:
    try:
        blocks = [yaml.safe_load(row[name]) for name in ("method", "dataset", "partition")]
        percent = float(row["percent"])
        protocol = {k: yaml.safe_load(v) for k, v in row.items() if k not in COLUMNS and v not in ("", None)}
    except (yaml.YAMLError, ValueError) as error:
        raise ReferencesError(f"{where}: {error}") from error
    if not all(isinstance(block, dict) and "name" in block for block in blocks):
        raise ReferencesError(f"{where}: method, dataset and partition are blocks like {{name: ...}}, found {blocks}")
    if row["metric"] not in METRIC or not row["source"]:
        raise ReferencesError(
            f"{where}: expected a source and a metric of {', '.join(METRIC)}, found {row['metric']!r}"
        )
    method, dataset, partition = blocks
    source, place, method_there, setting_there, metric = (row[name] for name in COLUMNS[:5])
    return Published(
        source=source,
        where=place,
        method_there=method_there,
        setting_there=setting_there,
        metric=metric,
        percent=percent,
        method=method,
        dataset=dataset,
        partition=partition,
        protocol=protocol,
    )


def beside(runs: pd.DataFrame, published: list[Published]) -> pd.DataFrame:
    """A row per published number, if its dataset is among the runs', and per method and setting that repeats it.

    runs: as `fedbench.report.evidence.Evidence.runs`. Columns: source, where, method, setting, metric, reported (percent),
    label, here (percent, mean over finished seeds), std, seeds, difference, protocol (words; "" where nothing differs).
    """
    configs = {text: json.loads(text) for text in runs["config"].unique()}
    datasets = {json.dumps(config.get("dataset", {}).get("name")) for config in configs.values()}
    rows = []
    for number in published:
        if json.dumps(number.dataset.get("name")) not in datasets:
            continue
        reported = {
            "source": number.source, "where": number.where, "method": number.method_there, "setting": number.setting_there,
            "metric": number.metric, "reported": number.percent,
        }  # fmt: skip
        texts = {text for text, config in configs.items() if number.is_of(config)}
        ours = runs[runs["config"].isin(texts)]
        for (_, label), of_method in ours.groupby(["setting", "label"], sort=False):
            values = 100 * of_method[number.metric].dropna()
            here = float(values.mean()) if len(values) else math.nan
            differs = "; ".join(protocol(number, configs[of_method["config"].iloc[0]]))
            rows.append(
                reported
                | {"label": label, "here": here, "std": float(values.std()), "seeds": len(values)}
                | {"difference": here - number.percent, "protocol": differs}
            )
        if ours.empty:
            nothing = {"label": "", "here": math.nan, "std": math.nan, "seeds": 0, "difference": math.nan}
            rows.append(reported | nothing | {"protocol": "no run of this method and partition"})
    columns = ["source", "where", "method", "setting", "metric", "reported", "label", "here", "std", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "protocol"])


def protocol(number: Published, config: Mapping[str, Any]) -> Iterator[str]:
    """``path: there / here`` for each stated part of the protocol that differs."""
    here = flat(config)
    for path, there in number.protocol.items():
        if path == "note":
            yield str(there)
        elif path == "backbone.name":
            ours = str(here.get(path, "?"))
            if not ours.startswith(str(there)):
                yield f"backbone: {there} / {ours}"
        elif here.get(path) != there:
            yield f"{path}: {there} / {here.get(path, 'none')}"
